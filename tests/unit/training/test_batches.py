"""Physical batches: nothing lost, nothing duplicated, within the token budget."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.training.batches import IGNORED, Example, physical_batches

CPU = torch.device("cpu")

examples_strategy = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 70), st.integers(0, 12)).map(
        lambda t: Example(ids=tuple(range(1, t[0] + 1)), prompt_length=min(t[1], t[0]), unit=t[2])
    ),
    max_size=40,
)


def cut(examples, budget=100):
    return physical_batches(examples, token_budget=budget, pad_id=0, device=CPU)


@given(examples_strategy, st.integers(16, 200))
def test_every_row_appears_once_and_batches_keep_to_the_budget(examples, budget):
    batches = cut(examples, budget)
    assert sorted(length for batch in batches for length in batch.lengths) == sorted(len(e.ids) for e in examples)
    for batch in batches:
        rows, width = batch.input_ids.shape
        assert rows * width <= budget or len(set(batch.unit.tolist())) == 1
        assert batch.real_tokens == int((batch.input_ids != 0).sum())


@given(examples_strategy)
def test_a_units_rows_never_straddle_batches(examples):
    batches = cut(examples)
    assert sum(len(set(batch.unit.tolist())) for batch in batches) == len({e.unit for e in examples})


@given(examples_strategy)
def test_the_order_of_examples_does_not_matter(examples):
    by_unit = {}
    for example in examples:
        by_unit.setdefault(example.unit, example)
    single = list(by_unit.values())
    for first, second in zip(cut(single), cut(single[::-1]), strict=True):
        assert torch.equal(first.input_ids, second.input_ids)
        assert torch.equal(first.labels, second.labels)


def test_labels_cover_the_response_and_nothing_else():
    batch = cut([Example(ids=(5, 6, 7, 8), prompt_length=2, unit=0), Example(ids=(5, 6), prompt_length=2, unit=1)])[0]
    assert batch.labels.tolist() == [[IGNORED, 7, 8, IGNORED], [IGNORED] * 4]


def test_an_empty_draw_gives_no_batches():
    assert cut([]) == []


def test_a_unit_alone_keeps_the_width_of_its_batch():
    """Another width would give it other bits."""
    batch = cut([Example(ids=(1, 2, 3), prompt_length=1, unit=0), Example(ids=(4,), prompt_length=0, unit=1)])[0]
    assert [unit.input_ids.tolist() for unit in batch.units()] == [[[1, 2, 3]], [[4, 0, 0]]]


@given(examples_strategy)
def test_units_alone_hold_their_own_rows(examples):
    for batch in cut(examples):
        alone = list(batch.units())
        assert [unit.examples for unit in alone] == [
            tuple(batch.examples[row] for row in rows) for rows in batch.rows_by_unit()
        ]
        for unit in alone:
            assert len({example.unit for example in unit.examples}) == 1
            assert unit.input_ids.shape == (len(unit.examples), batch.input_ids.shape[1])
            assert unit.unit.tolist() == [0] * len(unit.examples)
            assert unit.real_tokens == int((unit.input_ids != 0).sum())


@given(examples_strategy)
def test_padded_positions_are_each_rows_responses_in_order_then_positions_without_a_label(examples):
    for batch in cut(examples):
        padded = batch.padded()
        responses = [(labels != IGNORED).nonzero()[:, 0].tolist() for labels in batch.labels]
        assert padded.positions.shape == padded.labels.shape  # nothing of another row's length
        for labels, positions, expected in zip(batch.labels, padded.positions, responses, strict=True):
            assert positions[: len(expected)].tolist() == expected
            assert (labels[positions[len(expected) :]] == IGNORED).all()


def test_values_of_rows_are_added_up_by_unit():
    rows = [Example(ids=(1,) * length, prompt_length=0, unit=unit) for length, unit in ((3, 7), (2, 4), (5, 7))]
    batch = cut(rows)[0]
    assert batch.rows_by_unit() == [[0, 1], [2]]  # the unit with the longest row comes first
    assert batch.by_unit(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 4.0]
