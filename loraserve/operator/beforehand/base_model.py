"""A base model, known from its config.json and the headers of its weights: what a stack says of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from pydantic import ValidationError

from loraserve.catalog import base_weights
from loraserve.catalog.safetensors import tensors_of
from loraserve.contract.base_model import with_defaults
from loraserve.contract.document import explain, is_hub_id
from loraserve.errors import LoraserveError
from loraserve.planning.known_models import KNOWN_MODELS, KnownModel
from loraserve.planning.model_shapes import ModelShape

HUB = "https://huggingface.co"
_GIB = 1024**3
_MOST_BYTES = 64 << 20
"""Of a JSON file, or of a header."""
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WITHOUT_OUR_LAYERS = {
    "mixtral": "its MLPs are experts",
}


class UnknownBaseModel(LoraserveError):
    """The source is not a base model that can be read; the message says why, and what to do."""


@dataclass(frozen=True)
class Described:
    """What a stack file says of a base model."""

    name: str
    revision: str | None
    """Full commit hash, of a model that was read from the hub."""
    shape: ModelShape
    has_chat_template: bool
    accepted_ids: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """By configuration key."""
        revision = {"baseModelRevision": self.revision} if self.revision else {}
        return {
            "baseModel": self.name,
            **revision,
            "baseModelShape": self.shape.model_dump(mode="json", by_alias=True, exclude_none=True),
            **({"acceptedBaseIds": list(self.accepted_ids)} if self.accepted_ids else {}),
            "baseModelHasChatTemplate": self.has_chat_template,
        }


def describe(source: str, revision: str | None = None, hub: str = HUB) -> Described:
    """From a folder; or by the model's id, of those known here or, where a revision is named, from the hub.

    Raises UnknownBaseModel, UnsafeFile.
    """
    if Path(source).is_dir():
        return _of_folder(Path(source))
    if (known := KNOWN_MODELS.get(source)) and not revision:
        return _of_list(known)
    if is_hub_id(source):
        return _OfHub(hub, source, revision or "main").described()
    raise UnknownBaseModel(
        f"{source} is neither a folder nor a hub id: give one that has a config.json, or owner/model"
    )


def _of_list(known: KnownModel) -> Described:
    return Described(known.name, None, known.shape, known.has_chat_template, known.accepted_ids)


def _of_folder(folder: Path) -> Described:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UnknownBaseModel(
            f"{folder} has no readable config.json ({error}): give the folder of one whole model"
        ) from None
    files = sorted(folder.glob("*.safetensors"))
    tensors = [tensors_of(file, 1 << 50, base_weights.MAX_HEADER_BYTES) for file in files]
    size = sum(tensor.end - tensor.begin for of_file in tensors for tensor in of_file.values())
    return _described(str(folder), None, config, size, base_weights.has_chat_template(folder))


class _OfHub:
    def __init__(self, hub: str, model: str, revision: str) -> None:
        self._files = f"{hub}/{model}/resolve/{revision}"
        self._model, self._revision = model, revision
        self._http = urllib3.PoolManager(timeout=30, retries=3)
        self._commit: str | None = None

    def described(self) -> Described:
        config = self._json("config.json")
        if config is None:
            raise UnknownBaseModel(
                f"{self._files}/config.json is not there: look at the id and the revision; for a gated model set HF_TOKEN"
            )
        tokenizer = self._json("tokenizer_config.json") or {}
        template = bool(tokenizer.get("chat_template")) or self._get("chat_template.jinja") is not None
        return _described(self._model, self._commit, config, self._weights(), template)

    def _weights(self) -> int:
        """Bytes of all tensors."""
        if index := self._json(_INDEX):
            return int(index.get("metadata", {}).get("total_size", 0))
        start = self._get(_WEIGHTS, first=0, last=7)
        if start is None:
            return 0
        length = int.from_bytes(start, "little")
        if length > _MOST_BYTES:
            raise UnknownBaseModel(
                f"{self._files}/{_WEIGHTS} claims a header of {length} bytes: it is no safetensors file"
            )
        header = json.loads(self._get(_WEIGHTS, first=8, last=7 + length) or b"{}")
        return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")

    def _json(self, name: str) -> dict[str, Any] | None:
        content = self._get(name)
        try:
            value = json.loads(content) if content is not None else None
        except ValueError as error:
            raise UnknownBaseModel(f"{self._files}/{name} is not JSON ({error})") from None
        return value if isinstance(value, dict) else None

    def _get(self, name: str, first: int = 0, last: int = _MOST_BYTES) -> bytes | None:
        """None where there is no such file, or it may not be read."""
        token = os.environ.get("HF_TOKEN")
        headers = {"Range": f"bytes={first}-{last}"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            response = self._http.request("GET", f"{self._files}/{name}", headers=headers, preload_content=False)
            content = response.read(last - first + 1)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnknownBaseModel(
                f"{self._files}/{name} cannot be fetched ({error}): try again, or give a folder"
            ) from None
        if response.status in (401, 403, 404):
            return None
        if response.status >= 400:
            raise UnknownBaseModel(f"{self._files}/{name} answered {response.status}: try again, or give a folder")
        self._commit = self._commit or response.headers.get("X-Repo-Commit")
        return content


def _described(name: str, revision: str | None, config: dict[str, Any], weights: int, has_template: bool) -> Described:
    kind = config.get("model_type")
    if reason := _WITHOUT_OUR_LAYERS.get(str(kind)):
        raise UnknownBaseModel(f"{name} is a {kind} model: {reason}")
    if not weights:
        raise UnknownBaseModel(f"{name} has no safetensors weights: convert it, or take a model that has")
    known = {field: value for field, value in with_defaults(config).items() if field in ModelShape.model_fields}
    try:
        more = {"weights_gib": round(weights / _GIB, 2), "quantisation": _quantisation(config) or None}
        shape = ModelShape.model_validate(known | more)
    except ValidationError as error:
        raise UnknownBaseModel(f"{name} is no decoder-only model that is known here:\n{explain(error)}") from None
    return Described(name, revision, shape, has_template, (name,) if revision else ())


def _quantisation(config: dict[str, Any]) -> str:
    quantised = config.get("quantization_config") or {}
    words: Iterable[Any] = (
        quantised.get("quant_method"),
        quantised.get("bits"),
        "bits" if quantised.get("bits") else None,
    )
    return " ".join(str(word) for word in words if word) or str(config.get("torch_dtype") or config.get("dtype") or "")
