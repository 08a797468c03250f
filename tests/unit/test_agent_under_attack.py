"""What no publisher's tool would upload is refused for what it is, while the others keep serving."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraserve.contract.agent_state import State
from loraserve.contract.desired_state import Adapter
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm, lora_shapes, safetensors_of, upload, write_adapter
from tests.unit.agents import Agent, Publish, want

pytest_plugins = ["tests.unit.agent_fixtures"]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Files = dict[str, bytes]


def with_header(header: bytes, claimed: int | None = None) -> bytes:
    return (len(header) if claimed is None else claimed).to_bytes(8, "little") + header


def replaced(file: str, content: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, file: content}


UNSAFE = {
    "a pickle under the name of safetensors": (
        replaced(WEIGHTS, pickle.dumps({"weights": [0.0] * 1000})),
        "is not a sound safetensors file",
    ),
    "another rank than its config says": (
        replaced(WEIGHTS, safetensors_of(lora_shapes(rank=16))),
        "but adapter_config.json says rank 8",
    ),
    "a header that claims to be a terabyte": (
        replaced(WEIGHTS, with_header(b"{}", claimed=1 << 40)),
        "it claims a header of 1099511627776 bytes",
    ),
    "a header that nests for ever": (replaced(WEIGHTS, with_header(b'{"a":' + b"[" * 200_000)), "is not valid JSON"),
    "a tensor that would be a petabyte": (
        replaced(
            WEIGHTS,
            with_header(
                json.dumps(
                    {
                        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {
                            "dtype": "F32",
                            "shape": [8, 1 << 45],
                            "data_offsets": [0, 1 << 50],
                        }
                    }
                ).encode()
            ),
        ),
        "its tensors need",
    ),
    "a config that nests for ever": (replaced(CONFIG, b"[" * 200_000), "is not a LoRA configuration"),
    "a config of another method": (
        replaced(CONFIG, b'{"peft_type": "IA3", "r": 8, "lora_alpha": 16}'),
        "is not a LoRA configuration",
    ),
}


@pytest.fixture
def serving(agent: Agent, desired: Path, publish: Publish) -> Adapter:
    """An adapter that serves before the bad one comes."""
    good = publish("good")
    want(desired, good)
    agent.settle()
    return good


def assert_only_the_bad_one_is_out(agent: Agent, vllm: FakeVllm, cause: str, reason: str) -> None:
    statuses = agent.settle()
    assert statuses["good@v1"].state is State.READY
    assert (statuses["bad@v1"].state, statuses["bad@v1"].cause) == (State.QUARANTINED, cause)
    assert reason in (statuses["bad@v1"].reason or "")
    assert vllm.loads == ["good@v1"], "vLLM never saw the bad one, and kept the good one"


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_adapter_with_a_fitting_manifest_is_refused(
    agent: Agent, vllm: FakeVllm, desired: Path, serving: Adapter, s3: Any, tmp_path: Path, kind: str
) -> None:
    change, reason = UNSAFE[kind]
    folder = write_adapter(tmp_path / "bad")
    files = change({file: (folder / file).read_bytes() for file in (CONFIG, WEIGHTS)})
    want(desired, serving, upload(s3, "bad", files))

    assert_only_the_bad_one_is_out(agent, vllm, "UnsafeAdapter", reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-1] + b"\x00", "holds other bytes than were published"),
        (lambda content: content[: len(content) // 2], "holds less than"),
        (lambda content: content + b"\x00" * (1 << 20), "holds more than"),
    ],
    ids=["corrupt", "truncated", "oversized"],
)
def test_other_bytes_than_were_published_are_refused(
    agent: Agent,
    vllm: FakeVllm,
    desired: Path,
    serving: Adapter,
    publish: Publish,
    s3: Any,
    change: Callable[[bytes], bytes],
    reason: str,
) -> None:
    bad = publish("bad")
    key = f"llm-models/bad/v1/{WEIGHTS}"
    content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=change(content))
    want(desired, serving, bad)

    assert_only_the_bad_one_is_out(agent, vllm, "DigestMismatch", reason)


def test_an_entry_that_lies_about_the_rank_is_refused(
    agent: Agent, vllm: FakeVllm, desired: Path, serving: Adapter, publish: Publish
) -> None:
    want(desired, serving, publish("bad").model_copy(update={"rank": 4}))

    assert_only_the_bad_one_is_out(agent, vllm, "UnsafeAdapter", "the stack config says rank 4")
