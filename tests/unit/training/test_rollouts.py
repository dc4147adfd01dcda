"""Sampling: which token is drawn from which set; padding, batching and caching change nothing."""

import numpy as np
import pytest
import torch

from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.models.memory import enable_gradient_checkpointing
from sealed_experts.privacy.engines import make_engine
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.policy import nucleus_log_probs
from sealed_experts.training.rollouts import Sampling, check_row_independence, pick_tokens, sample_answers
from tests.tiny import tiny_qwen2

END, PAD = 7, 0
STREAM = Stream(b"k" * 32)
PROMPTS = [[5, 9, 11], [20, 21, 22, 23, 24, 25, 26], [40], [61, 62, 63, 64, 65]]


def policy(seed=0, sharpness=1.0):
    model = tiny_qwen2().requires_grad_(False)
    model = attach_adapter(model, Lora(rank=2, alpha=4), seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in trainable_parameters(model):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.get_output_embeddings().weight.mul_(sharpness)
    return model


def how(**changes):
    values = {
        "max_new_tokens": 6,
        "temperature": 0.7,
        "top_p": 0.9,
        "end": END,
        "pad": PAD,
        "prompt_tokens": 40,
        "rows": 8,
    }
    return Sampling(**{**values, **changes})


def draw(model, prompts=PROMPTS, units=None, step=1, **changes):
    units = list(range(len(prompts))) if units is None else units
    return sample_answers(model, prompts, units=units, sampling=how(**changes), stream=STREAM, step=step)


def token_by_token(model, prompt, unit, *, step=1, temperature=0.7, top_p=0.9, max_new_tokens=6):
    """Sample by definition: one prompt, no cache, no padding, a sorted list."""
    uniforms = STREAM.uniforms(f"rollout/{unit}", step, max_new_tokens)
    ids, tokens, log_probs, sizes = list(prompt), [], [], []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature
        probabilities = torch.softmax(logits, 0).numpy()
        order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
        nucleus, mass = [], 0.0
        for token in order:
            nucleus.append(token)
            mass += probabilities[token]
            if mass >= top_p:
                break
        candidates = nucleus if top_p < 1 else sorted(nucleus)
        reached = 0.0
        for token in candidates:
            reached += probabilities[token]
            if reached >= uniform * mass:
                break
        tokens.append(token)
        log_probs.append(float(np.log(probabilities[token] / mass)))
        sizes.append(len(nucleus))
        ids.append(token)
        if token == END:
            break
    return tokens, log_probs, sizes


@pytest.mark.parametrize("top_p", [0.9, 0.3, 1.0])
def test_a_padded_batch_with_a_cache_draws_what_each_prompt_draws_alone(top_p):
    model = policy(sharpness=8.0)
    for unit, answer in enumerate(draw(model, top_p=top_p)):
        tokens, log_probs, sizes = token_by_token(model, PROMPTS[unit], unit, top_p=top_p)
        assert list(answer.tokens) == tokens
        assert list(answer.nucleus) == sizes
        assert answer.log_probs == pytest.approx(log_probs, abs=1e-4)


def test_temperature_zero_takes_what_transformers_takes_without_sampling():
    model = policy(sharpness=3.0)
    for prompt, answer in zip(PROMPTS, draw(model, temperature=0.0), strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            said = model.generate(input_ids=ids, do_sample=False, max_new_tokens=6, eos_token_id=END, pad_token_id=PAD)
        assert list(answer.tokens) == said[0, len(prompt) :].tolist()
        assert set(answer.nucleus) == {1}
        assert set(answer.log_probs) == {0.0}


def test_of_equally_likely_tokens_temperature_zero_takes_the_lowest():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for uniform in (0.01, 0.99):
        uniforms = torch.full((2,), uniform, dtype=torch.float64)
        tokens, sizes, log_probs = pick_tokens(logits, uniforms, temperature=0.0, top_p=1.0)
        assert (tokens.tolist(), sizes.tolist(), log_probs.tolist()) == ([1, 0], [1, 1], [0.0, 0.0])


def test_an_answer_ends_with_its_end_of_sequence_and_is_truncated_without():
    model = policy()
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[END] = 50 * head.mean(0)
    answers = draw(model, prompts=[[i, i + 1] for i in range(10, 40)], temperature=2.0, top_p=1.0)
    assert {answer.truncated for answer in answers} <= {True, False}
    for answer in answers:
        assert (END in answer.tokens) != answer.truncated
        assert END not in answer.tokens[:-1]
        assert len(answer.tokens) == 6 or answer.tokens[-1] == END


def test_an_answer_depends_on_its_unit_and_step_not_on_its_neighbours():
    model = policy()
    together = draw(model, units=[10, 11, 12, 13], top_p=1.0)
    alone = [draw(model, prompts=[PROMPTS[i]], units=[10 + i], top_p=1.0)[0] for i in range(4)]
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    assert draw(model, top_p=1.0, units=[10, 11, 12, 13]) == together
    assert [a.tokens for a in draw(model, units=[10, 11, 12, 13], step=2, top_p=1.0)] != [a.tokens for a in together]
    same_prompt = draw(model, prompts=[[5, 9, 11]] * 2, units=[1, 2], top_p=1.0)
    assert same_prompt[0].tokens != same_prompt[1].tokens


def test_a_batch_that_does_not_fit_at_once_is_cut_and_draws_the_same():
    model = policy()
    assert [a.tokens for a in draw(model, rows=3)] == [a.tokens for a in draw(model)]
    assert [a.tokens for a in draw(model, rows=1)] == [a.tokens for a in draw(model)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_answer_is_the_same_to_the_last_bit_whoever_else_is_drawn(dtype):
    """Under privacy, one record must not change another record's answer; in bfloat16 the batch's shape did."""
    model = policy().to(dtype)
    prompts = [[5 + i, *range(20, 22 + i % 19)] for i in range(24)]
    units = list(range(24))
    whole = draw(model, prompts=prompts, units=units, rows=16, top_p=0.9, max_new_tokens=12)
    for left_out in (0, 11, 23):
        kept = [unit for unit in units if unit != left_out]
        without = draw(model, prompts=[prompts[u] for u in kept], units=kept, rows=16, top_p=0.9, max_new_tokens=12)
        assert without == [whole[unit] for unit in kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_passes_of_one_shape_give_every_row_its_own_bits(dtype):
    model = policy().to(dtype)
    prompts = [[5 + i, *range(20, 22 + i % 19)] for i in range(16)]
    assert check_row_independence(model, prompts, sampling=how(rows=16))


def test_rows_that_depend_on_each_other_are_noticed():
    class Coupled(torch.nn.Module):
        """A model whose logits depend on the whole batch."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            output = self.inner(**inputs)
            output.logits = output.logits + 1e-6 * output.logits[:1]
            return output

        def get_base_model(self):
            return self.inner.get_base_model()

    prompts = [[5 + i, 20, 21] for i in range(4)]
    assert not check_row_independence(Coupled(policy()), prompts, sampling=how(rows=4))


def test_equal_scores_are_ordered_by_token_whatever_the_neighbours_need(monkeypatch):
    """Equal bfloat16 logits are common; a neighbour that needs more candidates must not reorder them."""
    generator = torch.Generator().manual_seed(4)
    row = torch.randn(1, 2000, generator=generator).mul(3).to(torch.bfloat16).float()
    flat = torch.zeros(1, 2000)
    uniforms = torch.from_numpy(STREAM.uniforms("ties", 1, 64))
    alone = pick_tokens(row.expand(64, -1), uniforms, temperature=1.0, top_p=0.9)
    beside = pick_tokens(
        torch.cat([row.expand(64, -1), flat]), torch.cat([uniforms, uniforms[:1]]), temperature=1.0, top_p=0.9
    )
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other[:64])
    recomputed = nucleus_log_probs(row.expand(64, -1), alone[0], sizes=alone[1], temperature=1.0)
    torch.testing.assert_close(recomputed.double(), alone[2], rtol=0, atol=1e-5)


def test_an_empty_draw_has_no_answers():
    assert draw(policy(), prompts=[]) == []


def test_a_longer_nucleus_than_the_first_guess_is_found(monkeypatch):
    from sealed_experts.training import rollouts

    logits = torch.zeros(2, 300)  # uniform: the nucleus of 0.899 holds 270 tokens
    monkeypatch.setattr(rollouts, "LIKELIEST", 4)
    uniforms = torch.tensor([0.25, 0.999], dtype=torch.float64)
    _, sizes, log_probs = pick_tokens(logits, uniforms, temperature=1.0, top_p=0.899)
    assert sizes.tolist() == [270, 270]
    assert log_probs.tolist() == pytest.approx([-np.log(270)] * 2)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_are_those_of_the_truncated_softmax(top_p):
    """Chi-squared over 40,000 draws of six tokens."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    count = 40_000
    uniforms = torch.from_numpy(STREAM.uniforms("frequencies", 1, count))
    tokens, sizes, log_probs = pick_tokens(logits.expand(count, 6), uniforms, temperature=0.8, top_p=top_p)
    expected = torch.softmax(logits.double() / 0.8, 0)
    if top_p < 1:
        kept = int(sizes[0])
        assert float(expected[: kept - 1].sum()) < top_p <= float(expected[:kept].sum())
        expected = torch.where(torch.arange(6) < kept, expected, 0.0) / expected[:kept].sum()
    observed = torch.bincount(tokens, minlength=6).double()
    present = expected > 0
    assert observed[~present].sum() == 0
    chi_squared = float(((observed - count * expected)[present] ** 2 / (count * expected)[present]).sum())
    assert chi_squared < 20.5  # 99.9 % of the distribution with five degrees of freedom
    assert torch.allclose(log_probs, expected[tokens].log(), atol=1e-6)


def test_sampling_leaves_mode_hooks_and_gradients_alone():
    model = policy()
    engine = make_engine("hooks", model=model, objective=SupervisedFineTuning(max_seq_len=8))
    draw(model)
    assert model.training
    assert all(vars(parameter).get("grad_sample") is None for parameter in trainable_parameters(model))
    rows = [Example(ids=(1, 2, 3), prompt_length=1, unit=0), Example(ids=(4, 5, 6), prompt_length=1, unit=1)]
    (batch,) = physical_batches(rows, token_budget=100, pad_id=PAD, device=torch.device("cpu"))
    assert all(gradient.shape[0] == 2 for gradient in engine.per_unit(batch).gradients)
    engine.close()


def test_recomputed_activations_do_not_forbid_the_cache():
    plain, recomputing = policy(), policy()
    enable_gradient_checkpointing(recomputing)
    assert draw(recomputing) == draw(plain)


def test_the_kind_may_put_something_before_a_prompt(monkeypatch):
    """A kind with a one-token prefix draws the same tokens as prompts that begin with this token."""
    model, prompts = policy(), [[5, 9, 11], [20, 21, 22]]
    expected = draw(model, [[33, *prompt] for prompt in prompts], prompt_tokens=4)

    def with_a_token(cls, model, inputs):
        first = torch.full_like(inputs["input_ids"][:, :1], 33)
        ids = torch.cat([first, inputs["input_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(first), inputs["attention_mask"]], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return model.get_base_model(), {"input_ids": ids, "attention_mask": mask, "position_ids": positions}

    monkeypatch.setattr(Lora, "decoding", classmethod(with_a_token))
    assert [answer.tokens for answer in draw(model, prompts, prompt_tokens=3)] == [a.tokens for a in expected]
    assert check_row_independence(model, prompts, sampling=how(prompt_tokens=3))
