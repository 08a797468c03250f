"""The header of a safetensors file, read without trusting a byte of it and without loading a tensor."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from loraserve.catalog.files import UnsafeFile, open_regular

MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 256
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

    Reads the header only, and of that no more than `max_header_bytes` whatever the file claims. Parsed, it takes ten
    times as much memory.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or header_bytes > min(max_header_bytes, size - 8):
        raise BrokenSafetensors(f"it claims a header of {header_bytes} bytes and has {size} bytes in all")
    try:
        header = json.loads(file.read(header_bytes).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BrokenSafetensors(f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise BrokenSafetensors("its header is not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    tensors = {name: _parse_tensor(name, entry, start) for name, entry in header.items()}
    _check_layout(tensors, start, size)
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key appears twice")
    return entries


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
