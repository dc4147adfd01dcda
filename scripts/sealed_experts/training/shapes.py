"""Shapes of passes in which a row's bits are its own, whoever else is in the batch.

The shape of a matrix product decides the order of its sums, and so its last bits. Under privacy a unit's answer and
gradient must not depend on who else was drawn. So a row is padded to its own length, rounded up, and rows of one width
run together, in one of few numbers of rows. A check on made-up rows compares these shapes before training: it keeps the
places of a pass where a row gets the same bits as everywhere else.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

# Lengths are rounded up to a multiple of one of these, the first for which every pass serves every row.
MULTIPLES = (16, 64)


@dataclass(frozen=True)
class Grid:
    """The widths of passes.

    Attributes:
        multiple: every width is a multiple of it, except perhaps the longest.
        fineness: widths are at most a part of 1/`fineness` apart, except for the smallest: so there are few of them.
        longest: the largest width.
    """

    multiple: int
    fineness: int
    longest: int

    def width(self, length: int) -> int:
        """Return the width of a row with this many tokens; at most `longest`."""
        step = self.multiple
        while length > 2 * self.fineness * step:
            step *= 2
        return min(-(-length // step) * step, self.longest)

    def widths(self) -> list[int]:
        """Return all widths, in ascending order."""
        found = [self.width(1)]
        while found[-1] < self.longest:
            found.append(self.width(found[-1] + 1))
        return found


@dataclass(frozen=True)
class Shape:
    """A number of rows (or of units of several rows) in a pass.

    Attributes:
        rows: their number.
        places: where a row gets its own bits. Fillers take the other places, and places that are left.
    """

    rows: int
    places: tuple[int, ...]

    @classmethod
    def free(cls, rows: int) -> "Shape":
        """Return a shape with room for a row at every place."""
        return cls(rows, tuple(range(rows)))

    @property
    def is_free(self) -> bool:
        """Whether every place can be used."""
        return len(self.places) == self.rows


ALONE = (Shape.free(1),)  # one at a time: always exact for a model without memory


def pieces(shapes: Sequence[Shape], count: int) -> Iterator[Shape]:
    """Yield shapes that together hold `count` rows with few fillers: the largest that can be filled, then smaller."""
    by_room = sorted(shapes, key=lambda shape: len(shape.places))
    while count > 0:
        full = [shape for shape in by_room if len(shape.places) <= count]
        chosen = full[-1] if full else by_room[0]
        yield chosen
        count -= len(chosen.places)


def covering(shapes: Sequence[Shape], count: int) -> Iterator[Shape]:
    """Yield as few shapes as possible that together hold `count` rows: where they fit into one, the smallest."""
    by_room = sorted(shapes, key=lambda shape: len(shape.places))
    while count > 0:
        chosen = next((shape for shape in by_room if len(shape.places) >= count), by_room[-1])
        yield chosen
        count -= len(chosen.places)


def row_counts(most: int, *, least: int = 1) -> list[int]:
    """Return `least` and its doubles up to `most`; `least` alone if `most` is smaller."""
    counts = [least]
    while 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    return counts


def up_to_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


def agreeing(prints: Mapping[int, Sequence[int | None]]) -> tuple[Shape, ...]:
    """Return the shapes in which the made-up row had the same bits, from its print at each place, by number of rows.

    A print of None means that the bits at this place changed with the neighbours; then rows run alone. Of several sets
    of equal bits, the one with most places counts. Without two places that agree, rows run alone too.
    """
    counted = Counter(value for places in prints.values() for value in places)
    most = max(counted.values())
    if None in counted or most == 1:
        return ALONE
    common = next(value for value in reversed(counted) if counted[value] == most)
    shapes = [
        Shape(rows, tuple(place for place, value in enumerate(places) if value == common))
        for rows, places in prints.items()
    ]
    return tuple(shape for shape in shapes if shape.places)


def bit_prints(values: torch.Tensor) -> torch.Tensor:
    """Return an integer for the exact bits of each row, int64 [rows], of float32 or float64 values [rows, …]."""
    rows = values.flatten(1)
    bits = rows.contiguous().view(torch.int32).to(torch.int64)
    # Sums of integers are exact modulo 2^64, so their order does not matter.
    factors = torch.arange(1, bits.shape[1] + 1, device=bits.device) * 0x9E3779B1 % 0x7FFFFFFF | 1
    return (bits * factors).sum(1)
