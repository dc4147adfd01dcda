"""A strict reader of safetensors files: what the format allows but no honest writer makes is refused too."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sealed_experts.files.canonical import strict_json
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.source import BLOCK, Buffer

DTYPES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of an element
MAX_HEADER = 1 << 22
MAX_TENSORS = 20_000
MAX_EXTENT = 1 << 24
# All exponent bits set is how every IEEE 754 format, and bfloat16, writes infinities and NaN.
_EXPONENTS: dict[str, tuple[int, np.dtype[Any], np.dtype[Any]]] = {
    "F32": (0x7F800000, np.dtype("<u4"), np.dtype("<i4")),
    "F16": (0x7C00, np.dtype("<u2"), np.dtype("<i2")),
    "BF16": (0x7F80, np.dtype("<u2"), np.dtype("<i2")),
}
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_LONGEST_NAME = 300


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

    Raises:
        PackageError: as `TensorCheck`.
    """
    check, view = TensorCheck(size=len(content), member=member), memoryview(content)
    for start in range(0, len(content), BLOCK):
        check.feed(view[start : start + BLOCK])
    return check.finish()


class TensorCheck:
    """Checks a safetensors file that arrives in blocks; it never holds more than the header and a block.

    Checked: the header's length, strict JSON without duplicate names, metadata of `{"format": "pt"}` or none, names,
    dtypes, shapes, offsets that fill the data without hole or overlap, and that every value is finite.
    """

    def __init__(self, *, size: int, member: str) -> None:
        """Take the file's size in bytes; `member` names it in messages."""
        self._size, self._member = size, member
        self._start = bytearray()
        self._data: _FiniteCheck | None = None
        self._tensors: list[Tensor] = []

    def feed(self, block: Buffer) -> None:
        """Take the next bytes of the file.

        Raises:
            PackageError: they hold something that is not allowed.
        """
        view = memoryview(block)
        if self._data is None:
            view = self._take_header(view)
        if self._data is not None:
            self._data.feed(view)

    def skip(self, count: int) -> bool:
        """Take the next `count` bytes without a look at them, if they are float32 values at multiples of four.

        It is for who knows that such values would all be finite (`FiniteFloats`). Return whether they were taken.
        """
        return self._data is not None and self._data.skip(count)

    def finish(self) -> dict[str, Tensor]:
        """Return the tensors, by name.

        Raises:
            PackageError: the file ended too early.
        """
        if self._data is None:
            raise self._refusal(f"it has {self._size} bytes, too few for its header")
        return {tensor.name: tensor for tensor in self._tensors}

    def _take_header(self, view: memoryview) -> memoryview:
        """Keep what belongs to the header, read it when it is complete, and return what follows it."""
        view = self._keep(view, until=8)
        if len(self._start) < 8:
            return view
        length = int.from_bytes(self._start[:8], "little")
        if not 2 <= length <= min(MAX_HEADER, self._size - 8):
            raise self._refusal(f"its header's length is {length} bytes, which the file cannot hold or no one needs")
        view = self._keep(view, until=8 + length)
        if len(self._start) == 8 + length:
            self._tensors = self._read_header(bytes(self._start[8:]))
            self._data = _FiniteCheck(self._tensors, self._member, place=len(self._start))
            self._start.clear()
        return view

    def _keep(self, view: memoryview, *, until: int) -> memoryview:
        missing = max(0, until - len(self._start))
        self._start += view[:missing]
        return view[missing:]

    def _read_header(self, text: bytes) -> list[Tensor]:
        if not text.startswith(b"{"):
            raise self._refusal("its header does not start with an opening brace")
        try:
            header = strict_json(text.decode("utf-8").rstrip(" "))
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"its header is not strict JSON: {str(error)[:200]}") from error
        if header.pop("__metadata__", {"format": "pt"}) != {"format": "pt"}:
            raise self._refusal('its metadata must be {"format": "pt"} or absent')
        if not 1 <= len(header) <= MAX_TENSORS:
            raise self._refusal(f"it has {len(header)} tensors; 1 to {MAX_TENSORS} are allowed")
        tensors = [_read_entry(name, entry, self._member) for name, entry in header.items()]
        tensors.sort(key=lambda tensor: tensor.start)
        _check_layout(tensors, self._size - 8 - len(text), self._member)
        return tensors

    def _refusal(self, problem: str) -> PackageError:
        return PackageError(f"{self._member}: {problem}")


class FiniteFloats:
    """A quick look at bytes, whatever they are: would they all be finite as float32 values?"""

    def __init__(self) -> None:
        self._aligned = np.empty(0, dtype="<f4")  # where a block goes that does not begin at a value's address

    def all(self, block: Buffer) -> bool:
        """Return True only if every four bytes of `block` are a finite value.

        One pass, and enough: a term that is infinite or NaN never leaves a sum of squares again.
        """
        if len(block) % 4:
            return False
        values = np.frombuffer(block, dtype="<f4")
        if not values.flags.aligned:  # NumPy would copy it too, each time into new memory, which costs far more
            if len(self._aligned) < len(values):
                self._aligned = np.empty(len(values), dtype="<f4")
            copied = self._aligned[: len(values)]
            copied.view(np.uint8)[:] = np.frombuffer(block, dtype=np.uint8)
            values = copied
        with np.errstate(all="ignore"):
            return math.isfinite(np.dot(values, values))


class _FiniteCheck:
    """Looks for infinities and NaN in the data of tensors that follow one another without holes.

    `place` is where the data begin in the file.
    """

    def __init__(self, tensors: Sequence[Tensor], member: str, *, place: int) -> None:
        self._tensors, self._member, self._place = tensors, member, place
        self._index, self._position = 0, 0
        self._torn = b""  # the first bytes of an element that a block's end has cut
        self._floats = FiniteFloats()

    def skip(self, count: int) -> bool:
        end, last = self._position + count, self._index
        while self._tensors[last].end < end:
            last += 1
        taken = self._tensors[self._index : last + 1]
        if any(tensor.dtype != "F32" or (self._place + tensor.start) % 4 for tensor in taken):
            return False
        if self._torn or (self._place + self._position) % 4 or count % 4:
            return False
        self._advance(count)
        return True

    def _advance(self, count: int) -> None:
        self._position += count
        while self._index < len(self._tensors) and self._tensors[self._index].end <= self._position:
            self._index += 1

    def feed(self, block: Buffer) -> None:
        view = memoryview(block)
        while len(view):
            tensor = self._tensors[self._index]
            last = self._index
            # Neighbours of one dtype are one array: a file of many small tensors is as quick as one large one.
            while last + 1 < len(self._tensors) and self._tensors[last + 1].dtype == tensor.dtype:
                if self._tensors[last].end >= self._position + len(view):
                    break
                last += 1
            taken = min(len(view), self._tensors[last].end - self._position)
            self._check(view[:taken], tensor.dtype)
            view = view[taken:]
            self._advance(taken)

    def _check(self, part: memoryview, dtype: str) -> None:
        size, start = DTYPES[dtype], self._position
        if self._torn:
            start -= len(self._torn)
            missing = size - len(self._torn)
            self._torn, part = self._torn + bytes(part[:missing]), part[missing:]
            if len(self._torn) < size:
                return
            self._look(self._torn, dtype, start)
            start += size
        whole = len(part) - len(part) % size
        self._look(part[:whole], dtype, start)
        self._torn = bytes(part[whole:])

    def _look(self, elements: Buffer, dtype: str, start: int) -> None:
        if dtype == "F32" and self._floats.all(elements):
            return
        exponent, unsigned_kind, signed_kind = _EXPONENTS[dtype]
        unsigned, signed = np.frombuffer(elements, dtype=unsigned_kind), np.frombuffer(elements, dtype=signed_kind)
        # Read as integers, infinities and NaN are the largest values: of the signed ones those without the sign bit, of
        # the unsigned ones those with it.
        largest = int(np.maximum.reduce(signed, initial=0)), int(np.maximum.reduce(unsigned, initial=0))
        if largest[0] < exponent and largest[1] < exponent + (1 << 8 * DTYPES[dtype] - 1):
            return
        place = start + int(((unsigned & exponent) == exponent).argmax()) * DTYPES[dtype]
        name = next(tensor.name for tensor in self._tensors if tensor.end > place)
        raise PackageError(f"{self._member}: {name}: it holds values that are not finite")


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


def _check_layout(tensors: Sequence[Tensor], data_size: int, member: str) -> None:
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            raise PackageError(
                f"{member}: {tensor.name}: it starts at byte {tensor.start}, where {position} is expected"
            )
        position = tensor.end
    if position != data_size:
        raise PackageError(f"{member}: its tensors fill {position} bytes, but it holds {data_size}")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
