"""A strict check of an adapter's safetensors file. It refuses what no adapter needs, even if the format allows it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sealed_experts.files.safetensors_header import PREFIX, Rules, Tensor, header_length, parse_header
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.source import BLOCK, Buffer

# In every IEEE 754 format, and in bfloat16, infinities and NaN have all exponent bits set.
_EXPONENTS: dict[str, tuple[int, np.dtype[Any], np.dtype[Any]]] = {
    "F32": (0x7F800000, np.dtype("<u4"), np.dtype("<i4")),
    "F16": (0x7C00, np.dtype("<u2"), np.dtype("<i2")),
    "BF16": (0x7F80, np.dtype("<u2"), np.dtype("<i2")),
}
MAX_HEADER = 1 << 22
MAX_TENSORS = 20_000
_RULES = Rules(
    length=MAX_HEADER,
    tensors=(1, MAX_TENSORS),
    name=r"(?=.{1,300}$)[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*",
    dtypes=tuple(_EXPONENTS),
    dimensions=(1, 4),
    sizes=(1, 1 << 24),
    metadata={"format": "pt"},
)


def read_tensors(content: bytes, *, member: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name; `member` names the file in messages.

    Raises:
        PackageError: the file holds something that `TensorCheck` does not allow.
    """
    check, view = TensorCheck(size=len(content), member=member), memoryview(content)
    for start in range(0, len(content), BLOCK):
        check.feed(view[start : start + BLOCK])
    return check.finish()


class TensorCheck:
    """Checks a safetensors file that arrives in blocks. It never keeps more than the header and one block.

    It checks the header's length, strict JSON without duplicate names, metadata (`{"format": "pt"}` or none), names,
    dtypes, shapes, offsets that fill the data without gap or overlap, and that every value is finite.
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
        """Skip the next `count` bytes if they are float32 values at multiples of four. Return whether it did.

        Call it only for bytes already known to be finite as float32 values (`FiniteFloats`).
        """
        return self._data is not None and self._data.skip(count)

    def finish(self) -> dict[str, Tensor]:
        """Return the tensors, by name.

        Raises:
            PackageError: the file ended too early.
        """
        if self._data is None:
            raise PackageError(f"{self._member}: it has {self._size} bytes, too few for its header")
        return {tensor.name: tensor for tensor in self._tensors}

    def _take_header(self, view: memoryview) -> memoryview:
        """Collect the header, parse it when it is complete, and return the bytes after it."""
        view = self._keep(view, until=PREFIX)
        if len(self._start) < PREFIX:
            return view
        try:
            end = PREFIX + header_length(bytes(self._start[:PREFIX]), size=self._size, rules=_RULES)
            view = self._keep(view, until=end)
            if len(self._start) == end:
                self._tensors = parse_header(bytes(self._start[PREFIX:]), data_size=self._size - end, rules=_RULES)
                self._data = _FiniteCheck(self._tensors, self._member, place=end)
                self._start.clear()
        except ValueError as error:
            raise PackageError(f"{self._member}: {error}") from error
        return view

    def _keep(self, view: memoryview, *, until: int) -> memoryview:
        missing = max(0, until - len(self._start))
        self._start += view[:missing]
        return view[missing:]


class FiniteFloats:
    """A quick check of any bytes: are all of them finite, read as float32 values?"""

    def __init__(self) -> None:
        self._aligned = np.empty(0, dtype="<f4")  # for blocks whose address is not a multiple of four

    def all(self, block: Buffer) -> bool:
        """Return True only if every four bytes of `block` are a finite value.

        One pass is enough: once a term is infinite or NaN, the sum of squares stays infinite or NaN.
        """
        if len(block) % 4:
            return False
        values = np.frombuffer(block, dtype="<f4")
        if not values.flags.aligned:  # NumPy would copy it too, but into new memory each time, which is far slower
            if len(self._aligned) < len(values):
                self._aligned = np.empty(len(values), dtype="<f4")
            copied = self._aligned[: len(values)]
            copied.view(np.uint8)[:] = np.frombuffer(block, dtype=np.uint8)
            values = copied
        with np.errstate(all="ignore"):
            return math.isfinite(np.dot(values, values))


class _FiniteCheck:
    """Looks for infinities and NaN in the data of tensors that follow each other without gaps.

    `place` is the offset of the data in the file.
    """

    def __init__(self, tensors: Sequence[Tensor], member: str, *, place: int) -> None:
        self._tensors, self._member, self._place = tensors, member, place
        self._index, self._position = 0, 0
        self._torn = b""  # the first bytes of an element that continues in the next block
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
            # Check neighbours of one dtype as one array, so that many small tensors are as fast as one large one.
            while last + 1 < len(self._tensors) and self._tensors[last + 1].dtype == tensor.dtype:
                if self._tensors[last].end >= self._position + len(view):
                    break
                last += 1
            taken = min(len(view), self._tensors[last].end - self._position)
            self._check(view[:taken], tensor.dtype)
            view = view[taken:]
            self._advance(taken)

    def _check(self, part: memoryview, dtype: str) -> None:
        size, start = _EXPONENTS[dtype][1].itemsize, self._position
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
        # Read as integers, infinities and NaN are the largest values: the largest signed ones if the sign bit is 0,
        # the largest unsigned ones if it is 1.
        largest = int(np.maximum.reduce(signed, initial=0)), int(np.maximum.reduce(unsigned, initial=0))
        if largest[0] < exponent and largest[1] < exponent + (1 << 8 * unsigned_kind.itemsize - 1):
            return
        place = start + int(((unsigned & exponent) == exponent).argmax()) * unsigned_kind.itemsize
        name = next(tensor.name for tensor in self._tensors if tensor.end > place)
        raise PackageError(f"{self._member}: {name}: it holds values that are not finite")
