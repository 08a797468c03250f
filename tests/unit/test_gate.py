"""What the gate lets pass as an adapter, against the reference safetensors implementation."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from loraserve.files import UnsafeFile
from loraserve.gate import UnsafeAdapter, inspect, read_safetensors_header
from tests.unit.adapters_and_vllm import lora_shapes, safetensors_of, write_adapter

SOUND = safetensors_of(lora_shapes(rank=2, modules=("q_proj",)))


def refusal(folder: Path) -> str:
    with pytest.raises(UnsafeFile) as raised:
        inspect(folder)
    return str(raised.value)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_an_adapter_tells_its_facts(tmp_path: Path) -> None:
    facts = inspect(write_adapter(tmp_path, rank=12))

    assert (facts.rank, facts.alpha, facts.base_model) == (12, 16.0, "mistralai/Mistral-7B-v0.1")
    assert facts.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert facts.dtypes == ("F32",)


def test_targets_may_be_named_in_full_or_by_a_pattern(tmp_path: Path) -> None:
    shapes = lora_shapes(modules=("q_proj",))

    for targets in (["self_attn.q_proj"], r".*\.q_proj"):
        assert inspect(write_adapter(tmp_path, shapes, target_modules=targets)).target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"r": 16}, "says rank 16"),
        ({"r": 1024}, "r: Input should be less than or equal to 512"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]}, "no tensor for it"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "does not target"),
    ],
)
def test_a_config_that_vllm_would_not_serve_as_trained_is_refused(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(write_adapter(tmp_path, **config))


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("r: 8")

    assert "adapter_config.json is not a LoRA configuration" in refusal(tmp_path)


def test_a_pickled_adapter_is_refused_by_that_name(tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")

    assert "adapter_model.bin is a pickle" in refusal(tmp_path)


def test_a_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix")

    assert "not a sound safetensors file" in refusal(tmp_path)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    weights = write_adapter(tmp_path) / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")

    assert "adapter_model.safetensors is a symbolic link" in refusal(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter_config.json")

    assert "adapter_config.json is not a regular file" in refusal(tmp_path)


def test_a_huge_config_is_refused_unread(tmp_path: Path) -> None:
    with (write_adapter(tmp_path) / "adapter_config.json").open("wb") as file:
        file.truncate(1 << 40)

    assert "more than the" in refusal(tmp_path)


def test_an_empty_folder_names_the_missing_file(tmp_path: Path) -> None:
    assert "adapter_config.json cannot be read: No such file" in refusal(tmp_path)


def test_one_lora_matrix_without_the_other_is_refused(tmp_path: Path) -> None:
    shapes = lora_shapes()
    shapes.popitem()

    assert "only one of its two LoRA matrices" in refusal(write_adapter(tmp_path, shapes))


def test_tensors_that_are_no_lora_are_refused(tmp_path: Path) -> None:
    shapes = {**lora_shapes(), "model.embed_tokens.weight": [4, 4]}

    assert "model.embed_tokens.weight" in refusal(write_adapter(tmp_path, shapes))


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has 0 bytes"),
        (b"\x05\x00", "has 2 bytes"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "claims a header"),
        (with_header("[1]"), "not a JSON object"),
        (with_header("[" * 100_000), "not valid JSON"),
        (with_header('{"a": 1, "a": 2}'), "a key appears twice"),
        (with_header('{"a": ' + "9" * 5000 + "}"), "not valid JSON"),
        (with_header({"a": "text"}), "malformed"),
        (with_header({"a": {**ENTRY, "more": 1}}, b"1234"), "malformed"),
        (with_header({"a": {**ENTRY, "dtype": "F64"}}, b"1234"), "dtype 'F64'"),
        (with_header({"a": {**ENTRY, "shape": [2]}}, b"1234"), "contradict"),
        (with_header({"a": {**ENTRY, "shape": [-1]}}, b"1234"), "out of range"),
        (with_header({"a": {**ENTRY, "shape": [True]}}, b"1234"), "out of range"),
        (with_header({"a": {**ENTRY, "shape": [1] * 9}}, b"1234"), "out of range"),
        (with_header({"a": {**ENTRY, "data_offsets": [4, 8]}}, b"12345678"), "starts at byte 4"),
        (with_header({"a": ENTRY, "b": ENTRY}, b"1234"), "starts at byte 0"),
        (with_header({"a": ENTRY}, b"123"), "cut short?"),
        (with_header({"a": ENTRY}, b"12345"), "need 4 bytes of data and it holds 5"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnsafeAdapter, match="not a sound safetensors file") as raised:
        read_safetensors_header(io.BytesIO(content))

    assert reason in str(raised.value)


@given(content=st.binary(max_size=64) | st.builds(with_header, st.text(max_size=64), st.binary(max_size=16)))
def test_no_bytes_make_the_header_parser_fail_in_another_way(content: bytes) -> None:
    accepts(content)


@given(
    position=st.integers(0, len(SOUND) - 1),
    replacement=st.binary(max_size=12),
    removed=st.integers(0, 12),
)
def test_what_is_accepted_is_a_safetensors_file_to_the_reference_too(
    position: int, replacement: bytes, removed: int
) -> None:
    content = SOUND[:position] + replacement + SOUND[position + removed :]

    if accepts(content):
        safetensors.deserialize(content)


def accepts(content: bytes) -> bool:
    try:
        read_safetensors_header(io.BytesIO(content))
    except UnsafeAdapter:
        return False
    return True
