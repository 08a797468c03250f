"""What is a safetensors file, against the reference implementation."""

import io
import itertools
import json
import math
import struct
import tracemalloc
from pathlib import Path

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from loraserve.catalog.safetensors import CHUNK_BYTES, DTYPE_BITS, BrokenSafetensors, first_not_finite, read_header
from tests.unit.adapters_and_vllm import lora_shapes, safetensors_of

MAX_HEADER_BYTES = 4 << 20
SOUND = safetensors_of(lora_shapes(rank=2, modules=("q_proj",)))


def with_header(header: object, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has 0 bytes"),
        (b"\x05\x00", "has 2 bytes"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "claims a header"),
        (with_header("{" + " " * MAX_HEADER_BYTES + "}"), "claims a header"),
        (with_header("[1]"), "not a JSON object"),
        (with_header("[" * 100_000), "not valid JSON"),
        (with_header('{"a": 1, "a": 2}'), "a key appears twice"),
        (with_header('{"a": ' + "9" * 5000 + "}"), "not valid JSON"),
        (with_header({"a": "text"}), "malformed"),
        (with_header({"a" * 300: ENTRY}, b"1234"), "longer than"),
        (with_header({"a": {**ENTRY, "more": 1}}, b"1234"), "malformed"),
        (with_header({"a": {**ENTRY, "dtype": "F33"}}, b"1234"), "unknown dtype 'F33'"),
        (with_header({"a": {**ENTRY, "dtype": "F64"}}, b"1234"), "contradict"),
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
    with pytest.raises(BrokenSafetensors) as raised:
        read_header(io.BytesIO(content), MAX_HEADER_BYTES)

    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "entries",
    [
        '"a":' + "[" * 800 + "]" * 800,
        '"a":[' + "[]," * 1000 + "0]",
        '"a":{}',
        '"":[]',
        '"__metadata__":[' + "{}," * 100 + "0]",
    ],
)
def test_no_nesting_takes_more_than_ten_times_the_headers_bytes(entries: str) -> None:
    """Parsed whole, lists in lists take sixty times as much."""
    size = 1 << 17
    body = ",".join(itertools.repeat(entries, size // (len(entries) + 1)))
    content = with_header("{" + body + "}")
    tracemalloc.start()
    assert not accepts(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * size


def test_a_header_that_was_written_by_hand_is_read_as_json_is() -> None:
    entry = json.dumps(ENTRY, indent=2)
    content = with_header(f' {{ "__metadata__" : {{"format":"pt"}} ,\n"\\u0061\\"" : {entry} }}  ', b"1234")
    assert read_header(io.BytesIO(content), MAX_HEADER_BYTES).keys() == {'a"'}
    assert not accepts(with_header(f'{{"a": {entry},}}', b"1234"))
    assert not accepts(with_header(f'{{"a": {entry}}} more', b"1234"))
    assert not accepts(with_header(f'{{"a" {entry}}}', b"1234"))
    assert not accepts(with_header(f"{{1: {entry}}}", b"1234"))


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
        assert reference_accepts(content)


def accepts(content: bytes) -> bool:
    try:
        read_header(io.BytesIO(content), MAX_HEADER_BYTES)
    except BrokenSafetensors:
        return False
    return True


def reference_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_is_as_wide_as_the_reference_has_it(dtype: str) -> None:
    for size in range(1, 66):
        entry = {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}
        content = with_header(entry, bytes(size))
        assert accepts(content) == (size == DTYPE_BITS[dtype]) == reference_accepts(content)


def values_of(content: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":  # the upper half of a float32
        content = b"".join(b"\0\0" + content[at : at + 2] for at in range(0, len(content), 2))
    width, letter = {"F16": (2, "e")}.get(dtype, (4, "f"))
    return list(struct.unpack(f"<{len(content) // width}{letter}", content))


def first_bad(tensors: dict[str, bytes], dtype: str) -> str | None:
    header, data = {}, b""
    for name, content in tensors.items():
        shape = [len(content) * 8 // DTYPE_BITS[dtype]]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    file = io.BytesIO(with_header(header, data))
    return first_not_finite(file, read_header(file, MAX_HEADER_BYTES))


WEIGHTS = st.lists(
    st.sampled_from([b"\0\0", b"\x80\x7f", b"\0\x7c", b"\xff\x7b", b"\0\xfc", b"\1\x80"])
    | st.binary(min_size=2, max_size=2)
)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@given(halves=WEIGHTS)
def test_a_value_that_is_not_finite_is_seen(dtype: str, halves: list[bytes]) -> None:
    content = b"".join(halves[: len(halves) // 2 * 2])

    finite = all(map(math.isfinite, values_of(content, dtype)))

    assert first_bad({"before": bytes(8), "tensor": content, "after": bytes(4)}, dtype) == (
        None if finite else "tensor"
    )


@pytest.mark.parametrize("at", [0, CHUNK_BYTES - 2, CHUNK_BYTES, 2 * CHUNK_BYTES + 100])
def test_it_is_seen_in_any_chunk(at: int) -> None:
    content = bytearray(2 * CHUNK_BYTES + 102)
    assert first_bad({"tensor": bytes(content)}, "BF16") is None
    content[at : at + 2] = b"\xc0\x7f"
    assert first_bad({"tensor": bytes(content)}, "BF16") == "tensor"


def test_gigabytes_are_read_in_a_few_hundred_kilobytes(tmp_path: Path) -> None:
    size = 32 << 20
    with (tmp_path / "model.safetensors").open("w+b") as file:
        file.write(with_header({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}))
        file.truncate(file.tell() + size)
        tensors = read_header(file, MAX_HEADER_BYTES)
        tracemalloc.start()
        assert first_not_finite(file, tensors) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20
