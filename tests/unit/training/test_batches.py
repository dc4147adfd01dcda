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


def test_rows_are_alone_and_unpadded():
    batch = cut([Example(ids=(1, 2, 3), prompt_length=1, unit=0), Example(ids=(4,), prompt_length=0, unit=1)])[0]
    assert [row.input_ids.tolist() for row in batch.rows()] == [[[1, 2, 3]], [[4]]]
