"""The header of a safetensors file, read strictly and without its data.

A file holds 8 bytes with the header's length (little-endian), the header as JSON, and then the tensors' data.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.files.canonical import strict_json

PREFIX = 8  # bytes before the header
# Bits of one element. These are all kinds that safetensors 0.8 knows.
_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


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


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a header may hold; by default all that the format allows.

    Attributes:
        length: most bytes of the header; the default is the limit of the safetensors library.
        tensors: fewest and most tensors.
        name: pattern of a tensor's name.
        dtypes: kinds of elements.
        dimensions: fewest and most sizes of a shape.
        sizes: smallest and largest size in a shape.
        metadata: the only metadata allowed, or None for any.
    """

    length: int = 100_000_000
    tensors: tuple[int, int] = (0, 10_000_000)
    name: str = r"(?s).*"
    dtypes: Collection[str] = tuple(_BITS)
    dimensions: tuple[int, int] = (0, 32)
    sizes: tuple[int, int] = (0, 1 << 48)
    metadata: Mapping[str, str] | None = None


FORMAT = Rules()


def header_length(prefix: bytes, *, size: int, rules: Rules = FORMAT) -> int:
    """Return the header's length in bytes, given a file's first 8 bytes and its whole size.

    Raises:
        ValueError: the file is too short for its header, or the rules forbid a header of this length.
    """
    if size < PREFIX or len(prefix) < PREFIX:
        raise ValueError(f"it has {size} bytes, too few for its header")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if not 2 <= length <= min(rules.length, size - PREFIX):
        raise ValueError(f"its header's length is {length} bytes, which is more than the file holds or than is allowed")
    return length


def parse_header(text: bytes, *, data_size: int, rules: Rules = FORMAT) -> list[Tensor]:
    """Return the tensors of a header, in the order of their data.

    Args:
        data_size: bytes of the file after its header; the tensors must fill them without gap or overlap.

    Raises:
        ValueError: the header is not what the format and the rules allow.
    """
    if not text.startswith(b"{"):
        raise ValueError("its header does not start with an opening brace")
    try:
        header = strict_json(text.decode("utf-8").rstrip(" "))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not strict JSON: {str(error)[:200]}") from error
    _check_metadata(header, rules)
    fewest, most = rules.tensors
    if not fewest <= len(header) <= most:
        raise ValueError(f"it has {len(header)} tensors; {fewest} to {most} are allowed")
    tensors = [_tensor(name, entry, rules) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_layout(tensors, data_size)
    return tensors


def _check_metadata(header: dict[str, Any], rules: Rules) -> None:
    """Remove the metadata from a header and check them."""
    if "__metadata__" not in header:
        return
    found, only = header.pop("__metadata__"), rules.metadata
    if only is not None and found != only:
        raise ValueError(f"its metadata must be {json.dumps(only)} or absent")
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its metadata must be an object of texts")


def _tensor(name: str, entry: Any, rules: Rules) -> Tensor:
    if not re.fullmatch(rules.name, name):
        raise ValueError(f"{name[:300]!a} is not a tensor's name: it must be words joined by dots")
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: its entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in rules.dtypes:
        raise ValueError(f"{name}: its dtype must be one of {', '.join(rules.dtypes)}")
    (fewest, most), (smallest, largest) = rules.dimensions, rules.sizes
    if (
        not _whole_numbers(shape)
        or not fewest <= len(shape) <= most
        or not all(smallest <= size <= largest for size in shape)
    ):
        raise ValueError(f"{name}: its shape must be {fewest} to {most} sizes from {smallest} to {largest}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: its data_offsets must be two whole numbers")
    tensor = Tensor(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])
    needed, odd = divmod(tensor.elements * _BITS[dtype], 8)
    if odd or tensor.end - tensor.start != needed:
        raise ValueError(
            f"{name}: its data_offsets span {tensor.end - tensor.start} bytes; its shape and dtype need {needed}"
        )
    return tensor


def _check_layout(tensors: list[Tensor], data_size: int) -> None:
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            raise ValueError(f"{tensor.name}: it starts at byte {tensor.start}, where {position} is expected")
        position = tensor.end
    if position != data_size:
        raise ValueError(f"its tensors fill {position} bytes, but it holds {data_size}")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
