"""Widths and numbers of rows: everything fits, and nothing depends on another row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.training.shapes import ALONE, Grid, Shape, agreeing, bit_prints, covering, pieces, row_counts


@given(st.sampled_from([16, 64]), st.sampled_from([1, 2, 8]), st.integers(1, 3000))
def test_every_length_fits_its_width_and_widths_are_few(multiple, fineness, longest):
    grid = Grid(multiple=multiple, fineness=fineness, longest=longest)
    widths = grid.widths()
    assert widths == sorted(set(widths))
    assert widths[-1] == longest
    assert all(width % multiple == 0 for width in widths[:-1])
    for length in range(1, longest + 1):
        width = grid.width(length)
        assert width == min(found for found in widths if found >= length)
        assert width < length + max(multiple, length / fineness)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True), st.integers(0, 200))
def test_pieces_hold_every_row(rooms, count):
    shapes = [Shape.free(room) for room in rooms]
    for cut in (pieces, covering):
        found = [len(shape.places) for shape in cut(shapes, count)]
        assert sum(found) >= count
        assert sum(found[:-1]) < count or not found
        assert set(found) <= set(rooms)


def test_pieces_of_powers_of_two_have_no_fillers():
    for count in range(100):
        assert sum(shape.rows for shape in pieces([Shape.free(rows) for rows in row_counts(16)], count)) == count


@pytest.mark.parametrize(
    ("prints", "shapes"),
    [
        ({1: [5], 2: [5, 5], 4: [5] * 4}, (Shape.free(1), Shape.free(2), Shape.free(4))),
        ({1: [4], 2: [5, 5], 4: [5] * 4}, (Shape.free(2), Shape.free(4))),
        ({8: [1, 2, 1, 2, 1, 2, 1, 1]}, (Shape(8, (0, 2, 4, 6, 7)),)),
        ({1: [1], 2: [2, 2], 4: [2, 4, 3, 2]}, (Shape.free(2), Shape(4, (0, 3)))),
        ({1: [1], 2: [2, 2], 4: [2, None, 3, 2]}, ALONE),
        ({1: [1], 2: [2, 3]}, ALONE),
        ({1: [1], 2: [None, None]}, ALONE),
    ],
)
def test_only_places_with_the_commonest_bits_are_used(prints, shapes):
    assert agreeing(prints) == shapes


@given(st.integers(0, 63), st.integers(0, 31))
def test_a_print_sees_every_bit(column, bit):
    values = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    other = values.clone().view(torch.int32)
    other[0, column] ^= torch.tensor(1 << bit).to(torch.int32)
    assert bit_prints(values).tolist() != bit_prints(other.view(torch.float32)).tolist()
    assert bit_prints(torch.cat([values, values]))[0] == bit_prints(values)[0]
