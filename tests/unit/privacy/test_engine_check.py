"""The check before a private run: it passes exact engines, and refuses wrong ones with a clear message."""

import dataclasses

import pytest
import torch

from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.models.memory import enable_gradient_checkpointing
from sealed_experts.privacy.engines import GradientMismatch, hooks, vmap
from sealed_experts.privacy.engines.check import check_unit_gradients
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.response import response_logits
from tests.kinds import adapted
from tests.pairs import Preference, batch_of, units
from tests.tiny import tiny_qwen2

SINGLE, PAIRS = (1,) * 6, (2,) * 6
SFT = SupervisedFineTuning(max_seq_len=64)


def fresh(*targets):
    """A model with untrained LoRA: every gradient of A is zero."""
    base = tiny_qwen2().requires_grad_(False)
    return attach_adapter(base, Lora(rank=4, alpha=8, target_modules=targets), seed=1)


def check(model, objective=SFT, *, engine="hooks", sizes=SINGLE, rows=None):
    rows = rows or units(sizes)
    halves = [[row for row in rows if row.unit % 2 == half] for half in (0, 1)]
    return check_unit_gradients(
        engine=engine,
        model=model,
        objective=objective,
        batches=[batch_of(half) for half in halves],
        stream=Stream(bytes(32)),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_it_passes_at_the_adapters_start_and_restores_the_weights(recompute):
    """The truth once came from autograd.grad, which does not work with recomputed activations."""
    model = fresh("q_proj", "down_proj")
    if recompute:
        enable_gradient_checkpointing(model)
    before = [parameter.detach().clone() for parameter in trainable_parameters(model)]
    assert check(model) < 1e-4
    assert all(torch.equal(one, two) for one, two in zip(before, trainable_parameters(model), strict=True))
    assert not hasattr(model, "autograd_grad_sample_hooks")


@pytest.mark.parametrize(
    ("engine", "kind"), [("hooks", "lora"), ("vmap", "dora"), ("vmap", "prompt"), ("one_by_one", "ia3")]
)
def test_it_passes_pairs_on_every_exact_engine(engine, kind):
    assert check(adapted(kind), Preference(), engine=engine, sizes=PAIRS) < 1e-3


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("prompt", "got 1 gradients for 3 examples"),  # silently wrong: it treats the whole batch as one example
        ("ia3", "got no per-example gradient"),
        ("dora", r"the gradient engine `hooks` fails on this model \(TypeError: DoraLinearLayer"),
    ],
)
def test_it_refuses_hooks_where_they_are_wrong(kind, said):
    with pytest.raises(GradientMismatch, match=said):
        check(adapted(kind))


def test_it_refuses_an_engine_that_takes_one_units_gradient_for_anothers(monkeypatch):
    original = vmap.Chosen.per_unit

    def turned(self, batch):
        found = original(self, batch)
        return dataclasses.replace(found, gradients=[gradient.flip(0) for gradient in found.gradients])

    monkeypatch.setattr(vmap.Chosen, "per_unit", turned)
    with pytest.raises(GradientMismatch, match="differs from the one computed alone"):
        check(adapted("lora"), engine="vmap")


def test_it_refuses_an_engine_that_is_wrong_where_gradients_are_zero_at_the_start(monkeypatch):
    original = hooks.Chosen.per_unit

    def without_the_first(self, batch):
        found = original(self, batch)
        found.gradients[0].zero_()  # of a matrix A
        return found

    monkeypatch.setattr(hooks.Chosen, "per_unit", without_the_first)
    with pytest.raises(GradientMismatch, match="differs from the one computed alone"):
        check(fresh("q_proj"))


def test_it_refuses_an_engine_that_forgets_rows_of_a_unit(monkeypatch):
    def first_rows(gradients, unit):
        first = [unit.tolist().index(index) for index in range(int(unit.max()) + 1)]
        return [gradient[first] for gradient in gradients]

    monkeypatch.setattr(hooks, "sum_by_unit", first_rows)
    assert check(adapted("lora")) < 1e-4  # units with one row each cannot show the error
    with pytest.raises(GradientMismatch, match="differs from the one computed alone"):
        check(adapted("lora"), Preference(), sizes=PAIRS)


def test_it_refuses_a_loss_that_couples_units():
    class TokenMean(SupervisedFineTuning):
        def per_example_loss(self, model, batch, constants):
            response = response_logits(model, batch)
            return response.row_sums(response.losses()) / response.counts.sum(), {}

    with pytest.raises(GradientMismatch, match="differs from the one computed alone"):
        check(adapted("lora"), TokenMean(max_seq_len=64))


def test_it_refuses_a_loss_for_each_row_of_a_unit():
    class PerRow(SupervisedFineTuning):
        def per_example_loss(self, model, batch, constants):
            response = response_logits(model, batch)
            return response.row_means(response.losses()), {}

    with pytest.raises(GradientMismatch, match=r"the objective returned losses of shape \[6\] for 3 units"):
        check(adapted("lora"), PerRow(max_seq_len=64), sizes=PAIRS)


def test_it_refuses_a_layer_whose_rows_are_not_examples():
    """The output head's rows are positions, not examples: hooks give no per-example gradient there."""
    model = fresh("lm_head")
    with pytest.raises(GradientMismatch, match="gradients for"):
        check(model)
    assert check(model, engine="vmap") < 1e-4


def test_a_defect_of_the_objective_is_no_mismatch():
    class Broken(SupervisedFineTuning):
        def per_example_loss(self, model, batch, constants):
            return constants["missing"], {}

    with pytest.raises(KeyError, match="missing"):
        check(adapted("lora"), Broken(max_seq_len=64))


def test_an_example_that_teaches_nothing_is_no_mismatch_but_all_of_them_are():
    """An answer sampled from nuclei of one token has no gradient. That is no fault of the engine."""
    model, rows = adapted("lora"), units(SINGLE)
    silent = [dataclasses.replace(row, prompt_length=len(row.ids)) for row in rows]
    assert check(model, rows=[silent[0], *rows[1:]]) < 1e-3
    with pytest.raises(GradientMismatch, match="nothing to compare"):
        check(model, rows=silent)
