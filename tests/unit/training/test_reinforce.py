"""REINFORCE: log-probabilities, divergence, loss, baseline and queries, compared with their definitions."""

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.models.loading import load_tokenizer
from sealed_experts.privacy.engines import constants_of, make_engine
from sealed_experts.privacy.streams import Stream
from sealed_experts.rewards import Score
from sealed_experts.training.baseline import Baseline
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.objective import Materials
from sealed_experts.training.objectives.reinforce import PolicyGradient, Reinforce
from sealed_experts.training.policy import (
    nucleus_log_probs,
    other_weights,
    policy_terms,
)
from sealed_experts.training.scoring import Rollout
from tests.rewards import Vowels
from tests.tiny import build_tiny_base, tiny_qwen2

CPU = torch.device("cpu")
STREAM = Stream(b"r" * 32)
SETTINGS = Reinforce(
    rollout_batch_size=4, max_new_tokens=5, max_seq_len=40, temperature=0.8, top_p=0.7, kl_coef=0.3, entropy_coef=0.2
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(build_tiny_base(tmp_path_factory.mktemp("tokenizer") / "base").parent)


def kl_and_entropy(ours, theirs):
    return policy_terms(ours, theirs, torch.zeros(len(ours), dtype=torch.long))[1:]


def moved(model, seed, scale=0.3):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in trainable_parameters(model):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def adapted():
    model = tiny_qwen2().requires_grad_(False)
    model = attach_adapter(model, Lora(rank=2, alpha=4), seed=1)
    moved(model, 3)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10.0)  # a random head gives all tokens similar probabilities
    return model


def objective_of(model, tokenizer, settings=SETTINGS, reward=None):
    materials = Materials(model=model, tokenizer=tokenizer, pad_id=tokenizer.pad_token_id, seed=5, token_budget=4096)
    return PolicyGradient(settings=settings, reward=reward or Vowels(), materials=materials)


def prompts(count=4):
    return [
        Example(ids=tuple(range(10 + i, 14 + 2 * i)), prompt_length=3 + i, unit=i, prompt=f"p{i}") for i in range(count)
    ]


def prepared(model, objective, step=1):
    rollouts = objective.prepare(model, prompts(), step=step, stream=STREAM)
    return physical_batches(rollouts, token_budget=10_000, pad_id=0, device=CPU)


def test_recomputed_log_probabilities_equal_those_of_sampling(tokenizer):
    """Sampling uses a cache and left padding; the loss uses right padding and a mask of positions."""
    model = adapted()
    objective = objective_of(model, tokenizer)
    (batch,) = prepared(model, objective)
    logits = [model(input_ids=row.input_ids).logits[0] for row in batch.units()]
    for row, rollout in zip(logits, batch.examples, strict=True):
        answer = torch.tensor(rollout.ids[rollout.prompt_length :])
        positions = row[rollout.prompt_length - 1 : len(rollout.ids) - 1]
        sizes = torch.tensor(rollout.nucleus)
        assert 1 <= int(sizes.min()) <= int(sizes.max()) < 300
        found = nucleus_log_probs(positions, answer, sizes=sizes, temperature=0.8)
        assert found.tolist() == pytest.approx(list(rollout.log_probs), abs=1e-4)


def test_a_nucleus_always_holds_its_token():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    unlikely = nucleus_log_probs(logits, torch.tensor([3]), sizes=torch.tensor([1]), temperature=1.0)
    assert unlikely.tolist() == [0.0]  # the nucleus holds only this token
    swapped = nucleus_log_probs(logits, torch.tensor([3]), sizes=torch.tensor([2]), temperature=1.0)
    assert swapped.tolist() == pytest.approx([float(logits[:, [0, 3]].log_softmax(1)[0, 1])])
    full = nucleus_log_probs(logits, torch.tensor([1]), sizes=torch.tensor([4]), temperature=2.0)
    assert full.tolist() == pytest.approx([float((logits / 2).log_softmax(1)[0, 1])])
    cut = nucleus_log_probs(logits, torch.tensor([1]), sizes=torch.tensor([2]), temperature=1.0)
    assert cut.tolist() == pytest.approx([float(logits[:, :2].log_softmax(1)[0, 1])])


def test_the_score_terms_gradient_is_that_of_the_truncated_softmax():
    """d log π(token) / d logits = (one-hot - probabilities) / T inside the nucleus, 0 outside it."""
    logits = torch.tensor([[1.0, 0.5, -0.3, -2.0]], requires_grad=True)
    nucleus_log_probs(logits, torch.tensor([1]), sizes=torch.tensor([3]), temperature=0.5).sum().backward()
    inside = (logits.detach()[0, :3] / 0.5).softmax(0)
    expected = (torch.tensor([0.0, 1.0, 0.0]) - inside) / 0.5
    assert logits.grad[0].tolist() == pytest.approx([*expected.tolist(), 0.0], abs=1e-6)


def test_divergence_and_entropy_equal_those_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(6, 30, generator=generator) for _ in range(2))
    p, q = torch.distributions.Categorical(logits=ours), torch.distributions.Categorical(logits=theirs)
    divergence, entropy = kl_and_entropy(ours, theirs)
    torch.testing.assert_close(divergence, torch.distributions.kl_divergence(p, q))
    torch.testing.assert_close(entropy, p.entropy())
    assert 0.0 <= float(kl_and_entropy(ours, ours)[0].max()) < 1e-6


def test_gradients_of_divergence_and_entropy_equal_autograds():
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(5, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    ours.requires_grad_()
    weights = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    p, q = torch.distributions.Categorical(logits=ours), torch.distributions.Categorical(logits=theirs)
    plain = weights[0] @ torch.distributions.kl_divergence(p, q) + weights[1] @ p.entropy()
    divergence, entropy = kl_and_entropy(ours, theirs)
    found = torch.autograd.grad(weights[0] @ divergence + weights[1] @ entropy, ours)[0]
    torch.testing.assert_close(found, torch.autograd.grad(plain, ours)[0])
    assert torch.autograd.gradcheck(lambda z: kl_and_entropy(z, theirs), ours)


def test_all_terms_in_one_walk_have_the_gradients_of_each():
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (torch.randn(5, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens = torch.tensor([0, 8, 3, 3, 7])
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: policy_terms(z, theirs, tokens), ours)
    chosen, divergence, entropy = policy_terms(ours, theirs, tokens)
    whole = nucleus_log_probs(ours, tokens, sizes=torch.full((5,), 9), temperature=1.0)
    torch.testing.assert_close(chosen, whole)
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    together = (weights * torch.stack([chosen, divergence, entropy])).sum()
    apart = (weights * torch.stack([whole, *kl_and_entropy(ours, theirs)])).sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, ours)[0] for loss in (together, apart)))


def test_other_weights_are_used_without_gradient_and_given_back(tokenizer):
    model = adapted()
    parameters = trainable_parameters(model)
    own = [parameter.detach().clone() for parameter in parameters]
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    with other_weights(parameters, [torch.zeros_like(weight) for weight in own]):
        other = model(input_ids=ids).logits
    assert not other.requires_grad
    with model.disable_adapter():
        torch.testing.assert_close(other, model(input_ids=ids).logits)
    assert not torch.allclose(other, before)
    assert all(torch.equal(parameter, weight) for parameter, weight in zip(parameters, own, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


def loss_written_out(model, rollout, *, reference, settings):
    """One rollout's loss by its formula, term by term, from whole probability vectors."""
    ids = torch.tensor([rollout.ids])
    with torch.no_grad(), other_weights(trainable_parameters(model), reference):
        before = model(input_ids=ids).logits[0].softmax(1)
    logits = model(input_ids=ids).logits[0]
    now = logits.softmax(1)
    score, divergences, entropies = 0.0, [], []
    for place, position in enumerate(range(rollout.prompt_length, len(rollout.ids))):
        p, q, token = now[position - 1], before[position - 1], rollout.ids[position]
        tempered = (logits[position - 1] / settings.temperature).softmax(0)
        nucleus = tempered.topk(rollout.nucleus[place]).indices.tolist()
        if token not in nucleus:
            nucleus[-1] = token
        score = score + (tempered[token] / tempered[nucleus].sum()).log()
        divergences.append((p * (p / q).log()).sum())
        entropies.append(-(p * p.log()).sum())
    kl, bonus = torch.stack(divergences).mean(), torch.stack(entropies).mean()
    return -rollout.advantage * score + settings.kl_coef * kl - settings.entropy_coef * bonus


def test_the_loss_and_its_gradient_are_the_formulas(tokenizer):
    model = adapted()
    objective = objective_of(model, tokenizer)
    reference = [parameter.detach().clone() for parameter in trainable_parameters(model)]
    (batch,) = prepared(model, objective)
    moved(model, 9)  # away from the reference, so that the divergence is not zero
    engine = make_engine("hooks", model=model, objective=objective)
    units = engine.per_unit(batch)
    engine.close()
    objective.note(units.figures)
    for row, rollout in enumerate(batch.examples):
        expected = loss_written_out(model, rollout, reference=reference, settings=SETTINGS)
        assert units.losses[row].item() == pytest.approx(expected.item(), rel=1e-4)
        truth = torch.autograd.grad(expected, trainable_parameters(model))
        for gradient, one in zip(units.gradients, truth, strict=True):
            torch.testing.assert_close(gradient[row], one, rtol=2e-3, atol=1e-5)
    assert objective.figures([objective.observed()])["kl"] > 0.01


def test_advantages_come_from_the_baseline_before_it_moves(tokenizer):
    model = adapted()
    settings = SETTINGS.replace(reward_scale=2.0, baseline_decay=0.5)
    objective = objective_of(model, tokenizer, settings)
    (batch,) = prepared(model, objective)
    for rollout in batch.examples:
        assert rollout.advantage == pytest.approx(2.0 * (rollout.score.value - 0.5))
    objective.observe({"mean_reward": 0.9})
    (batch,) = prepared(model, objective, step=2)
    for rollout in batch.examples:
        assert rollout.advantage == pytest.approx(2.0 * (rollout.score.value - 0.9))


def test_the_self_checks_advantages_are_never_zero_by_chance(tokenizer):
    model = adapted()
    (batch,) = prepared(model, objective_of(model, tokenizer), step=0)
    assert [rollout.advantage for rollout in batch.examples] == [1.0] * 4


def test_the_baseline_is_bias_corrected_and_stays_in_range():
    baseline = Baseline(decay=0.99)
    assert baseline.value == 0.5
    baseline.update(0.8)
    assert baseline.value == pytest.approx(0.8)  # an average that starts at zero would give 0.008
    baseline.update(0.4)
    assert baseline.value == pytest.approx((0.99 * 0.8 + 0.4) / 1.99)
    again = Baseline(decay=0.99)
    again.load_state_dict(baseline.state_dict())
    assert again.value == baseline.value
    for _ in range(200):
        baseline.update(7.0)
    assert baseline.value == 1.0


def test_the_query_is_the_rewards_of_the_batch(tokenizer):
    model = adapted()
    objective = objective_of(model, tokenizer)
    (batch,) = prepared(model, objective)
    assert SETTINGS.query_noise() == {"mean_reward": SETTINGS.baseline_noise_multiplier}
    rewards = objective.queries(batch)["mean_reward"].tolist()
    assert rewards == [rollout.score.value for rollout in batch.examples]


def test_a_cut_answer_learns_from_its_reward_less_the_penalty(tokenizer):
    model = adapted()
    objective = objective_of(model, tokenizer, SETTINGS.replace(missing_eos_penalty=0.375))
    (batch,) = prepared(model, objective, step=2)
    rewards = objective.queries(batch)["mean_reward"].tolist()
    cut = [rollout.truncated for rollout in batch.examples]
    assert any(cut)
    for rollout, reward in zip(batch.examples, rewards, strict=True):
        assert reward == max(0.0, rollout.score.value - (0.375 if rollout.truncated else 0.0))
        assert rollout.advantage == pytest.approx(reward - 0.5)
    # The log and the evaluation show the reward itself.
    shown = sorted(answer["reward"] for answer in objective.observed()["answers"])
    assert shown == sorted(rollout.score.value for rollout in batch.examples)


def test_an_empty_draw_prepares_nothing_and_says_so(tokenizer):
    model = adapted()
    objective = objective_of(model, tokenizer)
    assert objective.prepare(model, [], step=1, stream=STREAM) == []
    assert objective.figures([objective.observed()])["reward_mean"] is None


def test_data_without_prompts_are_refused_before_training(tokenizer, tmp_path):
    objective = objective_of(adapted(), tokenizer)
    with pytest.raises(UserError, match="holds no prompts"):
        objective.check([], path=tmp_path / "train.jsonl")


def test_the_expected_gradient_is_that_of_the_expected_reward(tokenizer):
    """The policy gradient theorem (Williams, 1992): sum over all one-token answers, weighted by probability."""
    model = adapted()
    settings = SETTINGS.replace(kl_coef=0.0, entropy_coef=0.0, temperature=1.0, top_p=1.0)
    objective = objective_of(model, tokenizer, settings)
    prompt = (10, 11, 12)
    probabilities = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    tokens = range(len(probabilities))
    rewards = [Vowels().score("", tokenizer.decode([token], skip_special_tokens=True)).value for token in tokens]
    rollouts = [
        Rollout(
            ids=(*prompt, token),
            prompt_length=len(prompt),
            unit=token,
            nucleus=(len(tokens),),
            log_probs=(0.0,),
            truncated=True,
            response="",
            score=Score(reward, {}),
            advantage=reward - 0.5,  # any baseline cancels out
        )
        for token, reward in zip(tokens, rewards, strict=True)
    ]
    (batch,) = physical_batches(rollouts, token_budget=10_000, pad_id=0, device=CPU)
    weights = probabilities.detach()[[rollout.unit for rollout in batch.examples]]
    losses, _ = objective.per_example_loss(model, batch, constants_of(objective, model, batch))
    found = torch.autograd.grad(weights @ losses, trainable_parameters(model))
    truth = torch.autograd.grad(-(probabilities @ torch.tensor(rewards)), trainable_parameters(model))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
        assert float(other.abs().max()) > 0
