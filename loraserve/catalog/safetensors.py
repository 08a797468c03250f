"""The header of a safetensors file, read without trusting a byte of it and without loading a tensor."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from loraserve.catalog.files import UnsafeFile, open_regular

MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 256
MAX_MEMBER_CHARS = 4 << 10
"""Of a tensor's name, and of its entry."""
MAX_METADATA_CHARS = 1 << 20
CHUNK_BYTES = 64 << 10

DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_EXPONENTS = {"F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
"""Dtype -> bytes per value, and the bits of its exponent, which are all set in a NaN and in an infinity."""


_METADATA = "__metadata__"
_BLANKS = re.compile(r"[ \t\n\r]*")


class BrokenSafetensors(UnsafeFile):
    """The file is not a sound safetensors file; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """`begin` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensors_of(path: Path, max_bytes: int, max_header_bytes: int) -> dict[str, Tensor]:
    """By name. Raises UnsafeFile (no regular file of at most `max_bytes`), BrokenSafetensors."""
    with open_regular(path, max_bytes) as file:
        try:
            return read_header(file, max_header_bytes)
        except BrokenSafetensors as error:
            raise BrokenSafetensors(f"{path.name} is not a sound safetensors file: {error}") from None


def read_header(file: BinaryIO, max_header_bytes: int) -> dict[str, Tensor]:
    """The tensors of a seekable file, by name. Raises BrokenSafetensors unless they fill the file exactly.

    Reads the header only, and of that no more than `max_header_bytes` whatever the file claims. Entries are parsed one by
    one, so that it takes ten times as much memory, whatever is nested in it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or header_bytes > min(max_header_bytes, size - 8):
        raise BrokenSafetensors(f"it claims a header of {header_bytes} bytes and has {size} bytes in all")
    try:
        text = file.read(header_bytes).decode("utf-8")
        names = [name for name, _ in _members(text)]
    except (ValueError, RecursionError) as error:
        raise BrokenSafetensors(f"its header is not valid JSON ({error})") from None
    if len(set(names)) != len(names):
        raise BrokenSafetensors("its header is not valid JSON (a key appears twice)")
    start = 8 + header_bytes
    tensors = {name: _parse_tensor(name, entry, start) for name, entry in _members(text) if name != _METADATA}
    _check_layout(tensors, start, size)
    return tensors


def _members(text: str) -> Iterator[tuple[str, object]]:
    """Those of the JSON object that `text` is, never more than one of them in memory. Raises ValueError, RecursionError,
    BrokenSafetensors (another kind of value)."""
    at = _skip_blanks(text, 0)
    if text[at : at + 1] != "{":
        _value_at(text, at, MAX_MEMBER_CHARS)
        raise BrokenSafetensors("its header is not a JSON object")
    at = _skip_blanks(text, at + 1)
    while text[at : at + 1] != "}":
        name, at = _value_at(text, at, MAX_MEMBER_CHARS)
        if not isinstance(name, str):
            raise ValueError("a key is not a string")
        at = _skip_blanks(text, _expect(text, _skip_blanks(text, at), ":"))
        value, at = _value_at(text, at, MAX_METADATA_CHARS if name == _METADATA else MAX_MEMBER_CHARS)
        yield name, value
        at = _skip_blanks(text, at)
        if text[at : at + 1] != "}":
            at = _skip_blanks(text, _expect(text, at, ","))
            if text[at : at + 1] == "}":
                raise ValueError("a comma before the end")
    if _skip_blanks(text, at + 1) != len(text):
        raise ValueError("more after its end")


def _value_at(text: str, at: int, max_chars: int) -> tuple[object, int]:
    """One value, and where it ends."""
    value, length = _DECODER.raw_decode(text[at : at + max_chars])
    if length == max_chars:
        raise ValueError(f"a name or an entry of {max_chars} characters or more")
    return value, at + length


def _expect(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise ValueError(f"no {mark!r} at character {at}")
    return at + 1


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key appears twice")
    return entries


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _parse_tensor(name: str, entry: object, start: int) -> Tensor:
    if len(name) > MAX_NAME_LENGTH:
        raise BrokenSafetensors(f"a tensor's name is longer than {MAX_NAME_LENGTH} characters")
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **rest} if not rest:
            numbers = [*shape, begin, end]
        case _:
            raise BrokenSafetensors(f"the entry of tensor {name!r} is malformed")
    if dtype not in DTYPE_BITS:
        raise BrokenSafetensors(f"tensor {name!r} has the unknown dtype {dtype!r:.20}")
    if len(shape) > MAX_DIMENSIONS or any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers):
        raise BrokenSafetensors(f"the shape or offsets of tensor {name!r} are out of range")
    if (end - begin) * 8 != prod(shape) * DTYPE_BITS[dtype]:
        raise BrokenSafetensors(f"tensor {name!r} has {end - begin} bytes, which its shape and dtype contradict")
    return Tensor(dtype, tuple(shape), start + begin, start + end)


def _check_layout(tensors: dict[str, Tensor], start: int, size: int) -> None:
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise BrokenSafetensors(
                f"tensor {name!r} starts at byte {tensor.begin - start} of the data instead of {position - start}"
            )
        position = tensor.end
    if position != size:
        raise BrokenSafetensors(
            f"its tensors need {position - start} bytes of data and it holds {size - start} (cut short?)"
        )


def first_not_finite(file: BinaryIO, tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; F32, F16 and BF16 only. Holds CHUNK_BYTES of data."""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if not all(_is_finite(chunk, tensor.dtype) for chunk in _chunks(file, tensor)):
            return name
    return None


def _chunks(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    file.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, CHUNK_BYTES):
        yield file.read(min(CHUNK_BYTES, tensor.end - begin))


def _is_finite(chunk: bytes, dtype: str) -> bool:
    """All values at once, as one long number: adding an exponent's lowest bit to it sets the sign bit if all are set."""
    exponents, lowest, signs = _lanes(dtype, (len(chunk) - 1).bit_length())
    return not ((int.from_bytes(chunk, "little") & exponents) + lowest) & signs


@cache
def _lanes(dtype: str, size_bits: int) -> tuple[int, int, int]:
    """Exponent, its lowest bit, and sign bit of as many values as 2**size_bits bytes hold."""
    width, exponent = _EXPONENTS[dtype]
    values = -(-(1 << size_bits) // width)
    sign, lowest = 1 << (8 * width - 1), exponent & -exponent
    exponents, lowests, signs = (
        int.from_bytes(bits.to_bytes(width, "little") * values, "little") for bits in (exponent, lowest, sign)
    )
    return exponents, lowests, signs
