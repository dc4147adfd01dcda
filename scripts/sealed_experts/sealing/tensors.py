"""A strict reader of safetensors files: what the format allows but no honest writer makes is refused too."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sealed_experts.files.canonical import strict_json
from sealed_experts.sealing.errors import PackageError

DTYPES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of an element
MAX_HEADER = 1 << 23
MAX_TENSORS = 20_000
MAX_EXTENT = 1 << 24
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_LONGEST_NAME = 300
_BLOCK = 1 << 20  # elements whose finiteness is checked at a time


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One entry of the header; `start` and `end` are offsets in the file's data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_tensors(content: bytes, *, member: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name; `member` names the file in messages.

    Checked: the header's length, strict JSON without duplicate names, metadata of `{"format": "pt"}` or none, names,
    dtypes, shapes, offsets that fill the data without hole or overlap, and that every value is finite.

    Raises:
        PackageError: one of these does not hold.
    """
    header, data_start = _read_header(content, member)
    metadata = header.pop("__metadata__", {"format": "pt"})
    if metadata != {"format": "pt"}:
        raise PackageError(f'{member}: its metadata must be {{"format": "pt"}} or absent')
    if not 1 <= len(header) <= MAX_TENSORS:
        raise PackageError(f"{member}: it has {len(header)} tensors; 1 to {MAX_TENSORS} are allowed")
    tensors = [_read_entry(name, entry, member) for name, entry in header.items()]
    _check_layout(tensors, len(content) - data_start, member)
    for tensor in tensors:
        _check_finite(content, data_start, tensor, member)
    return {tensor.name: tensor for tensor in tensors}


def _read_header(content: bytes, member: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(MAX_HEADER, len(content) - 8):
        raise PackageError(
            f"{member}: its header's length is {length} bytes, which the file cannot hold or no one needs"
        )
    text = content[8 : 8 + length]
    if not text.startswith(b"{"):
        raise PackageError(f"{member}: its header does not start with an opening brace")
    try:
        header = strict_json(text.decode("utf-8").rstrip(" "))
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{member}: its header is not strict JSON: {str(error)[:200]}") from error
    return header, 8 + length


def _read_entry(name: str, entry: Any, member: str) -> Tensor:
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise PackageError(f"{member}: {name[:_LONGEST_NAME]!a} is not a tensor's name: words joined by dots are")
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PackageError(f"{member}: {name}: its entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PackageError(f"{member}: {name}: its dtype must be one of {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or not 1 <= len(shape) <= 4 or not all(1 <= size <= MAX_EXTENT for size in shape):
        raise PackageError(f"{member}: {name}: its shape must be 1 to 4 sizes from 1 to {MAX_EXTENT}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise PackageError(f"{member}: {name}: its data_offsets must be two whole numbers")
    tensor = Tensor(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])
    if tensor.end - tensor.start != tensor.elements * DTYPES[dtype]:
        raise PackageError(
            f"{member}: {name}: its data_offsets span {tensor.end - tensor.start} bytes; its shape and dtype need"
            f" {tensor.elements * DTYPES[dtype]}"
        )
    return tensor


def _check_layout(tensors: list[Tensor], data_size: int, member: str) -> None:
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start != position:
            raise PackageError(
                f"{member}: {tensor.name}: it starts at byte {tensor.start}, where {position} is expected"
            )
        position = tensor.end
    if position != data_size:
        raise PackageError(f"{member}: its tensors fill {position} bytes, but it holds {data_size}")


def _check_finite(content: bytes, data_start: int, tensor: Tensor, member: str) -> None:
    kind, exponent = (
        ("<u4", 0x7F800000) if tensor.dtype == "F32" else ("<u2", 0x7F80 if tensor.dtype == "BF16" else 0x7C00)
    )
    values = np.frombuffer(content, dtype=kind, count=tensor.elements, offset=data_start + tensor.start)
    for start in range(0, tensor.elements, _BLOCK):
        # All exponent bits set is how every IEEE 754 format, and bfloat16, writes infinities and NaN.
        if ((values[start : start + _BLOCK] & exponent) == exponent).any():
            raise PackageError(f"{member}: {tensor.name}: it holds values that are not finite")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
