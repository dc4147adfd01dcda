"""Per-unit gradients of every engine against a plain backward pass for each unit alone, written in this file."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.models.attachment import trainable_parameters
from sealed_experts.models.memory import enable_gradient_checkpointing
from sealed_experts.privacy.engines import NAMES, make_engine
from sealed_experts.rewards import Score
from sealed_experts.training.batches import Example
from sealed_experts.training.objective import Materials
from sealed_experts.training.objectives.reinforce import PolicyGradient, Reinforce
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.policy import nucleus_log_probs, other_weights, policy_terms
from sealed_experts.training.scoring import Rollout
from tests.kinds import KINDS, VOCABULARY, adapted
from tests.pairs import BETA, Preference, batch_of, units

EXACT = {
    "hooks": ("lora", "lora_fa", "prefix"),
    "vmap": KINDS,
    "one_by_one": KINDS,
}
# Largest difference, relative to the norm of a unit's gradient.
NOISE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def predictions(model, row):
    """The logits that predict each response token, from the model's own output for this row alone, and the tokens."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0].float()[-len(row.ids) :]
    return logits[row.prompt_length - 1 : -1], torch.tensor(row.ids[row.prompt_length :])


def likelihoods(model, row):
    logits, tokens = predictions(model, row)
    return logits.log_softmax(1)[torch.arange(len(tokens)), tokens]


def sft_loss(model, rows):
    return sum(-likelihoods(model, row).mean() for row in rows)


def preference_loss(model, rows):
    first, *others = (likelihoods(model, row).sum() for row in rows)
    return torch.log1p(torch.exp(-BETA * (first - sum(others))))


def truth(model, batch, loss):
    """Each unit's gradient, float64 [units, parameters], and loss."""
    parameters, gradients, losses = trainable_parameters(model), [], []
    by_unit = {}
    for example, unit in zip(batch.examples, batch.unit.tolist(), strict=True):
        by_unit.setdefault(unit, []).append(example)
    for unit in sorted(by_unit):
        value = loss(model, by_unit[unit])
        parts = torch.autograd.grad(value, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
        losses.append(value.item())
    return torch.stack(gradients), losses


def measured(engine, model, objective, batch):
    chosen = make_engine(engine, model=model, objective=objective)
    found = chosen.per_unit(batch)
    chosen.close()
    assert [tuple(g.shape[1:]) for g in found.gradients] == [tuple(p.shape) for p in trainable_parameters(model)]
    assert not any(value.requires_grad for value in (*found.gradients, found.losses, *found.figures.values()))
    assert all(parameter.grad is None for parameter in model.parameters())
    return torch.cat([gradient.flatten(1) for gradient in found.gradients], dim=1).double(), found


def assert_exact(kind, model, objective, batch, loss, *, noise=1e-4):
    expected, losses = truth(model, batch, loss)
    norms = expected.norm(dim=1)
    assert float(norms.min()) > 1e-6
    for engine in NAMES:
        if kind in EXACT[engine]:
            for _ in range(2):  # nothing of the first batch may affect the second
                gradients, found = measured(engine, model, objective, batch)
                assert float(((gradients - expected).norm(dim=1) / norms).max()) < noise, engine
                assert found.losses.tolist() == pytest.approx(losses, rel=noise, abs=1e-5)


@pytest.mark.parametrize("base", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_exact_engine_gives_each_units_own_gradient(kind, base):
    model, batch = adapted(kind, base), batch_of(units())
    assert_exact(kind, model, SupervisedFineTuning(max_seq_len=64), batch, sft_loss)
    assert_exact(kind, model, Preference(), batch, preference_loss)


@pytest.mark.parametrize("kind", KINDS)
def test_they_do_on_a_base_in_bfloat16(kind):
    model, batch = adapted(kind, dtype=torch.bfloat16), batch_of(units())
    noise = NOISE[torch.bfloat16]
    assert_exact(kind, model, SupervisedFineTuning(max_seq_len=64), batch, sft_loss, noise=noise)
    assert_exact(kind, model, Preference(), batch, preference_loss, noise=noise)


def answers(model, *, top_p):
    """Rollouts with invented advantages and nuclei. The likelihoods at the end of a nucleus differ clearly."""
    rollouts = []
    for index, row in enumerate(units(seed=1)):
        with torch.no_grad():
            logits, _ = predictions(model, row)
        gaps = -logits.sort(dim=1, descending=True).values[:, :40].diff(dim=1)
        # Of this size or one less: a nucleus gives way to a token outside it.
        clear = torch.minimum(gaps[:, 1:], gaps[:, :-1]).argmax(1) + 2
        rollouts.append(
            Rollout(
                **vars(row),
                nucleus=tuple(clear.tolist()) if top_p < 1 else (VOCABULARY,) * row.response_tokens,
                log_probs=(0.0,) * row.response_tokens,
                truncated=False,
                response="",
                score=Score(0.5, {}),
                advantage=(-1.0) ** index * (0.5 + 0.1 * index),
            )
        )
    return rollouts


def reinforce(model, **changes):
    settings = Reinforce(rollout_batch_size=4, max_new_tokens=5, kl_coef=0.3, entropy_coef=0.2, **changes)
    tokenizer = SimpleNamespace(eos_token_id=1, pad_token_id=0)
    reference = Materials(model=model, tokenizer=tokenizer, pad_id=0, seed=5, token_budget=4096)
    return PolicyGradient(settings=settings, reward=None, materials=reference), settings


def reinforce_loss(settings, reference):
    """The loss by its formula, term by term, from complete probability vectors."""

    def loss(model, rows):
        total = 0.0
        for row in rows:
            logits, tokens = predictions(model, row)
            with other_weights(trainable_parameters(model), reference):
                before, _ = predictions(model, row)
            p, q = logits.softmax(1), before.softmax(1)
            tempered, score = (logits / settings.temperature).softmax(1), 0.0
            for place, (likelihood, token) in enumerate(zip(tempered, tokens.tolist(), strict=True)):
                nucleus = likelihood.topk(row.nucleus[place]).indices.tolist()
                if token not in nucleus:
                    nucleus[-1] = token
                score = score + (likelihood[token] / likelihood[nucleus].sum()).log()
            divergence, entropy = (p * (p / q).log()).sum(1).mean(), -(p * p.log()).sum(1).mean()
            total = total - row.advantage * score + settings.kl_coef * divergence - settings.entropy_coef * entropy
        return total

    return loss


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.7), (1.0, 0.7), (1.0, 1.0)])
@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt", "prefix"])
def test_reinforce_is_exact_with_its_reference_nuclei_divergence_and_entropy(kind, temperature, top_p):
    """The reference is the same model with other weights. Swapping weights inside `vmap` would have no effect."""
    model = adapted(kind)
    objective, settings = reinforce(model, temperature=temperature, top_p=top_p)
    reference = [parameter.detach().clone() for parameter in trainable_parameters(model)]
    model.get_output_embeddings().weight.mul_(10.0)  # a random head says all tokens alike
    far = 0.1 if kind in ("lora", "ia3") else 1.0
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        for parameter in trainable_parameters(model):
            parameter += far * torch.randn(parameter.shape, generator=generator)
    batch = batch_of(answers(model, top_p=top_p))
    loss = reinforce_loss(settings, reference)
    assert_exact(kind, model, objective, batch, loss)
    _, found = measured("vmap", model, objective, batch)
    assert float(found.figures["kl"].min()) > 1e-4
    _, again = measured("one_by_one", model, objective, batch)
    for name, values in found.figures.items():
        torch.testing.assert_close(values, again.figures[name], rtol=1e-2, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_policy_terms_and_nuclei_are_the_same_inside_vmap():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 2, 4, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens, sizes = (torch.randint(0, 20, (3, 2, 4), generator=generator) for _ in range(2))
    sizes += 1
    weights = torch.randn(4, 3, 2, 4, generator=generator, dtype=torch.float64)

    def value(logits, reference, tokens, sizes, weights):
        terms = policy_terms(logits, reference, tokens)
        nucleus = nucleus_log_probs(logits, tokens, sizes=sizes, temperature=0.7, largest=20)
        return (torch.stack([*terms, nucleus]) * weights).sum()

    arguments = (ours, theirs, tokens, sizes, weights)
    together = torch.vmap(torch.func.grad(value), in_dims=(0, 0, 0, 0, 1))(*arguments)
    ours.requires_grad_()
    for unit in range(3):
        alone = value(ours[unit], theirs[unit], tokens[unit], sizes[unit], weights[:, unit])
        torch.testing.assert_close(together[unit], torch.autograd.grad(alone, ours)[0][unit])
    flat = policy_terms(ours.flatten(0, 2), theirs.flatten(0, 2), tokens.flatten())
    for got, right in zip(flat, policy_terms(ours, theirs, tokens), strict=True):
        assert torch.equal(got, right.flatten())


def test_an_example_without_response_has_zero_loss_and_zero_gradient():
    objective, silent = SupervisedFineTuning(max_seq_len=64), Example(ids=(1, 2, 3), prompt_length=3, unit=9)
    for rows in ([silent], [silent, *units()]):
        batch = batch_of(rows)
        index = batch.unit[batch.examples.index(silent)]
        for engine in NAMES:
            gradients, found = measured(engine, adapted("lora"), objective, batch)
            assert float(gradients[index].abs().max()) == float(found.losses[index]) == 0.0


@pytest.mark.parametrize("engine", ["hooks", "one_by_one"])
def test_recomputed_activations_change_nothing(engine):
    model, batch, objective = adapted("lora"), batch_of(units()), Preference()
    expected, _ = truth(model, batch, preference_loss)
    enable_gradient_checkpointing(model)
    gradients, _ = measured(engine, model, objective, batch)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_vmap_refuses_recomputed_activations_and_says_what_to_set():
    model = adapted("dora")
    enable_gradient_checkpointing(model)
    with pytest.raises(UserError, match="set `gradient_checkpointing: off`"):
        make_engine("vmap", model=model, objective=Preference())


def test_engines_have_names_that_need_no_torch():
    with pytest.raises(ValueError, match="no engine is called 'ghost'; there are hooks, vmap, one_by_one"):
        make_engine("ghost", model=None, objective=Preference())
    code = "import sys; from sealed_experts.privacy.engines import NAMES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
