"""What the stack files of this checkout say, and the values that tests add to them."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infra.names import PROJECT

CHECKOUT = Path(__file__).resolve().parents[1]

PRODUCTION_CHOICES = {
    "baseModelRevision": "0123456789abcdef0123456789abcdef01234567",
    "privateAccessCidrs": ["192.168.0.0/24"],
}
"""What Pulumi.prod.yaml leaves to its owner."""

OWN_MODEL_SHAPE = {
    "hiddenSize": 2048,
    "intermediateSize": 8192,
    "numHiddenLayers": 16,
    "numAttentionHeads": 32,
    "numKeyValueHeads": 8,
    "headDim": 64,
    "vocabSize": 32_000,
    "weightsGib": 2.3,
}
"""Of a base model that this program does not know."""


def adapter(name: str = "aws-rag-qa", **changes: Any) -> dict[str, Any]:
    """An entry as `loraserve publish` prints it."""
    entry: dict[str, Any] = {
        "name": name,
        "model": f"mistral-7b-{name}",
        "version": "v1",
        "digest": "sha256:" + "0" * 64,
        "rank": 8,
        "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "sizeBytes": 27_297_032,
    }
    return entry | changes


def stack_file(stack: str) -> dict[str, Any]:
    """The `config` section of a stack file."""
    return deepcopy(_config(f"Pulumi.{stack}.yaml"))


def stack_values(stack: str, **changes: Any) -> dict[str, Any]:
    """The program's own keys as the CLI would hand them over: defaults of Pulumi.yaml, then the stack file."""
    defaults = {key: schema["default"] for key, schema in _config("Pulumi.yaml").items()}
    own = {key: value for key, value in (defaults | stack_file(stack)).items() if key.startswith(f"{PROJECT}:")}
    values = {key.removeprefix(f"{PROJECT}:"): value for key, value in own.items()}
    if stack == "prod":
        values |= PRODUCTION_CHOICES
    return {key: value for key, value in (values | changes).items() if value is not None}


@cache
def _config(name: str) -> dict[str, Any]:
    return yaml.safe_load((CHECKOUT / name).read_text())["config"]
