"""Per-example gradients against one-at-a-time truth, and the self-check that refuses."""

import dataclasses

import pytest
import torch

from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.models.memory import enable_gradient_checkpointing
from sealed_experts.privacy.gradients import GradientMismatch, HookGradients, check_per_example_gradients
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.objectives.response import mean_response_loss, response_logits
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from tests.tiny import tiny_qwen2

CPU = torch.device("cpu")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def examples(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [7 + 5 * index for index in range(count)]
    return [
        Example(
            ids=tuple(torch.randint(1, 300, (length,), generator=generator).tolist()),
            prompt_length=3 + index,
            unit=index,
        )
        for index, length in enumerate(lengths)
    ]


def adapted(dtype=torch.float32, target_modules=ALL):
    model = tiny_qwen2().to(dtype).requires_grad_(False)
    model = attach_adapter(model, Lora(rank=4, alpha=8, target_modules=target_modules), seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for parameter in trainable_parameters(model):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(rows, budget=10_000):
    return physical_batches(rows, token_budget=budget, pad_id=0, device=CPU)


def truth(model, batch):
    """Each row alone, without padding, through the model's own labelled loss: nothing of ours but the data."""
    gradients = []
    for row in batch.rows():
        labels = row.input_ids.clone()
        first = int((row.labels != -100).nonzero()[0, 1]) + 1
        labels[:, :first] = -100
        loss = model(input_ids=row.input_ids, labels=labels).loss
        gradients.append(torch.autograd.grad(loss, trainable_parameters(model)))
    return [torch.stack(parts) for parts in zip(*gradients, strict=True)]


@pytest.mark.parametrize("recompute", [False, True])
def test_hook_gradients_equal_the_models_own_loss_one_example_at_a_time(recompute):
    model, objective = adapted(), SupervisedFineTuning(max_seq_len=64)
    batch = batch_of(examples())[0]
    expected = truth(model, batch)
    if recompute:
        enable_gradient_checkpointing(model)
    engine = HookGradients(model)
    for _ in range(2):  # a second batch must not see anything of the first
        measured = engine.per_example(lambda: objective.per_example_loss(model, batch))
        for got, right in zip(measured, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)


def test_the_self_check_works_with_recomputed_activations():
    """Once it used autograd.grad for the truth, which reentrant checkpointing does not support."""
    model = adapted()
    enable_gradient_checkpointing(model)
    assert self_check(model, lambda batch: SupervisedFineTuning(max_seq_len=64).per_example_loss(model, batch)) < 1e-4


def test_the_bases_dropout_is_off_while_it_trains():
    """It would be randomness that no key decides, and no two passes over an example would agree."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    base = OPTForCausalLM(
        OPTConfig(
            vocab_size=300,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            dropout=0.3,
            attention_dropout=0.3,
            word_embed_proj_dim=32,
        )
    )
    model = attach_adapter(
        base.requires_grad_(False), Lora(rank=2, alpha=4, target_modules=("q_proj", "v_proj")), seed=0
    )
    assert model.training
    batch = batch_of(examples(2))[0]
    one, two = (SupervisedFineTuning(max_seq_len=64).per_example_loss(model, batch) for _ in range(2))
    assert torch.equal(one, two)


def test_the_self_check_passes_and_restores_the_weights():
    model, objective = adapted(), SupervisedFineTuning(max_seq_len=64)
    before = [parameter.detach().clone() for parameter in trainable_parameters(model)]
    worst = self_check(model, lambda batch: objective.per_example_loss(model, batch))
    assert 0 < worst < 1e-4
    assert all(torch.equal(one, two) for one, two in zip(before, trainable_parameters(model), strict=True))
    assert not hasattr(model, "autograd_grad_sample_hooks")


def test_the_self_check_refuses_a_loss_that_couples_examples():
    model = adapted()

    def mean_over_the_batchs_tokens(batch):
        response = response_logits(model, batch)
        return response.row_sums(response.losses()) / response.counts.sum()

    with pytest.raises(GradientMismatch, match="differs from the one computed alone"):
        self_check(model, mean_over_the_batchs_tokens)


def test_the_self_check_refuses_a_layer_whose_rows_are_not_examples():
    """The output head sees selected positions, not examples: an adapter there has no per-example gradient by hooks."""
    model = adapted(target_modules=("lm_head",))
    with pytest.raises(GradientMismatch, match="gradients for"):
        self_check(model, lambda batch: SupervisedFineTuning(max_seq_len=64).per_example_loss(model, batch))


def self_check(model, loss, rows=None):
    rows = rows or examples(6)
    return check_per_example_gradients(
        model=model,
        loss=loss,
        batches=[*batch_of(rows[0::2]), *batch_of(rows[1::2])],
        alone=lambda batch: list(batch.rows()),
        stream=Stream(bytes(32)),
        dtype=torch.float32,
    )


def test_one_examples_loss_does_not_depend_on_the_others():
    model, rows = adapted(), examples()
    together = SupervisedFineTuning(max_seq_len=64).per_example_loss(model, batch_of(rows)[0])
    alone = [SupervisedFineTuning(max_seq_len=64).per_example_loss(model, batch_of([row])[0]) for row in reversed(rows)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_an_example_without_response_has_zero_loss_and_zero_gradient():
    model, objective = adapted(), SupervisedFineTuning(max_seq_len=64)
    silent = Example(ids=(1, 2, 3), prompt_length=3, unit=0)
    for rows in ([silent], [silent, *examples(2)[1:]]):
        batch = batch_of(rows)[0]
        engine = HookGradients(model)
        gradients = engine.per_example(lambda batch=batch: objective.per_example_loss(model, batch))
        engine.close()
        index = batch.lengths.index(3)
        assert all(float(gradient[index].abs().max()) == 0.0 for gradient in gradients)


def test_validation_loss_is_the_token_mean_however_it_is_cut():
    model, rows = adapted(), examples()
    whole, cut = mean_response_loss(model, batch_of(rows)), mean_response_loss(model, batch_of(rows, budget=40))
    assert whole == pytest.approx(cut, rel=1e-5)
    batch = batch_of(rows)[0]
    response = response_logits(model, batch)
    assert whole == pytest.approx(float(response.losses().sum() / response.counts.sum()), rel=1e-5)


def test_an_example_that_teaches_nothing_is_no_mismatch_but_all_of_them_are():
    """An answer sampled from nuclei of one token has no gradient; that says nothing about the engine."""
    model, rows = adapted(), examples()
    objective = SupervisedFineTuning(max_seq_len=64)
    silent = [dataclasses.replace(rows[0], prompt_length=len(rows[0].ids)), *rows[1:]]
    assert self_check(model, lambda batch: objective.per_example_loss(model, batch), silent) < 1e-3
    none = [dataclasses.replace(row, prompt_length=len(row.ids)) for row in rows]
    with pytest.raises(GradientMismatch, match="nothing to compare"):
        self_check(model, lambda batch: objective.per_example_loss(model, batch), none)
