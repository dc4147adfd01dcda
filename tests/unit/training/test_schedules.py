"""Schedules, compared with those of PyTorch and transformers."""

import itertools

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from sealed_experts.training.schedules import learning_rate


@pytest.mark.parametrize("warmup", [0, 5])
def test_cosine_with_warmup_equals_the_one_of_transformers(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = get_cosine_schedule_with_warmup(optimizer, warmup, 40)
    for step in range(1, 41):
        ours = learning_rate(step=step, total_steps=40, peak=0.3, warmup_steps=warmup, schedule="cosine")
        if step > warmup:
            assert ours == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        else:
            # Theirs starts with a step of rate zero, which trains nothing; ours starts one step later on the same line.
            assert ours == pytest.approx(reference.get_last_lr()[0] + 0.3 / warmup)
        optimizer.step()
        reference.step()


def test_constant_stays_after_the_warmup():
    rates = [
        learning_rate(step=step, total_steps=10, peak=1.0, warmup_steps=4, schedule="constant") for step in range(1, 11)
    ]
    assert rates == [0.25, 0.5, 0.75, 1.0, *[1.0] * 6]


@pytest.mark.parametrize("warmup", [0, 3])
def test_linear_falls_by_equal_amounts_to_zero_one_step_after_the_last(warmup):
    rates = [
        learning_rate(step=step, total_steps=11, peak=0.4, warmup_steps=warmup, schedule="linear")
        for step in range(1, 13)
    ]
    falling = rates[warmup:]
    assert falling[0] == 0.4
    falls = [a - b for a, b in itertools.pairwise(falling)]
    assert falls == pytest.approx([0.4 / (11 - warmup)] * (11 - warmup))
    assert falling[-1] == pytest.approx(0.0, abs=1e-12)
