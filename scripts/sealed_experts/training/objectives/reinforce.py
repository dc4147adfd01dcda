"""REINFORCE: answers that the model samples itself, pushed up or down by their reward.

Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning" (1992), with a
moving average as the baseline.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.models.attachment import trainable_parameters
from sealed_experts.privacy.streams import Stream
from sealed_experts.rewards import Reward
from sealed_experts.training.batches import Batch, Example, physical_batches
from sealed_experts.training.held_out import answer_held_out
from sealed_experts.training.objectives.baseline import Baseline
from sealed_experts.training.objectives.distributions import (
    nucleus_log_probs,
    other_weights,
    policy_terms,
)
from sealed_experts.training.objectives.objective import Materials, Objective
from sealed_experts.training.objectives.response import at_responses, mean_response_loss, response_logits
from sealed_experts.training.scoring import Rollout, Scorer, figures_of_observed, observed, reward_figures
from sealed_experts.training.stages.reinforce import MEAN_REWARD, Reinforce


class PolicyGradient(Objective):
    """Policy gradients on sampled answers.

    An answer's loss is -(advantage) · Σ log π + kl_coef · KL - entropy_coef · H over its tokens. The score term
    uses the tempered, truncated policy that sampled. KL and entropy H use the untruncated one and are means over
    tokens (as sums they would reward long answers for themselves); KL is measured from the adapter that the stage
    started from, over the whole vocabulary (the Rao-Blackwellised estimator, see `distributions.policy_terms`).

    The advantage is reward_scale · (reward - baseline). The baseline is a function of other records' rewards: under
    privacy it learns of them through a noised mean alone, and only after the step's advantages were taken.
    """

    name = "reinforce"

    def __init__(self, *, settings: Reinforce, reward: Reward, materials: Materials) -> None:
        self._settings, self._materials = settings, materials
        self._scorer = Scorer(
            settings=settings,
            reward=reward,
            tokenizer=materials.tokenizer,
            check=materials.check,
            processes=materials.processes,
        )
        self._parameters = trainable_parameters(materials.model)
        # Taken before a resumed run loads its own weights.
        self._reference = [parameter.detach().clone() for parameter in self._parameters]
        self._baseline = Baseline(decay=settings.baseline_decay)
        # Of the step at hand, for the log.
        self._rollouts: list[Rollout] = []
        self._divergences: list[float] = []
        self._entropies: list[float] = []

    def check(self, examples: Sequence[Example], *, path: Path) -> None:
        """Refuse data without prompts, and prompts that leave no room for an answer."""
        if not examples:
            raise UserError(f"{path} holds no prompts: reinforce needs records to answer")
        self._scorer.check_room(examples, path=path)
        if self._settings.privacy.enabled:
            self._scorer.settle(self._materials.model, examples)

    def check_held_out(self, examples: Sequence[Example], *, path: Path) -> None:
        """Refuse held-out prompts that leave no room for an answer."""
        self._scorer.check_room(examples, path=path)

    def prepare(self, model: torch.nn.Module, batches: Sequence[Batch], *, step: int, stream: Stream) -> list[Batch]:
        """Sample an answer to every prompt of the logical batch, score it, and cut the answers into batches."""
        self._forget()
        examples = [example for batch in batches for example in batch.examples]
        rollouts = self._scorer.roll_out(model, examples, stream=stream, step=step)
        self._rollouts = [
            dataclasses.replace(rollout, advantage=self._advantage(rollout, step=step)) for rollout in rollouts
        ]
        return self._physical(self._rollouts)

    def constants(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Return the reference's logits, the advantages, and the nuclei that the answers were sampled from."""
        rollouts, device = _rollouts_of(batch), batch.input_ids.device
        with other_weights(self._parameters, self._reference):
            reference = response_logits(model, batch).logits
        constants = {
            "reference": reference,
            "advantages": torch.tensor([rollout.advantage for rollout in rollouts], device=device),
        }
        if self._settings.top_p == 1.0:
            return constants
        sizes = [size for rollout in rollouts for size in rollout.nucleus]
        nuclei = at_responses(batch, torch.tensor(sizes, device=device), elsewhere=1)
        return {**constants, "nuclei": nuclei, "largest_nucleus": max(sizes, default=1)}

    def per_example_loss(
        self, model: torch.nn.Module, batch: Batch, constants: Mapping[str, Any]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return each answer's loss, [units], with its divergence and entropy."""
        now = response_logits(model, batch)
        log_probs, *of_positions = policy_terms(now.logits, constants["reference"], now.tokens)
        nuclei, temperature = constants.get("nuclei"), self._settings.temperature
        if temperature != 1.0 or nuclei is not None:
            largest = constants.get("largest_nucleus")
            log_probs = nucleus_log_probs(
                now.logits, now.tokens, sizes=nuclei, temperature=temperature, largest=largest
            )
        divergences, entropies = map(now.row_means, of_positions)
        losses = (
            -constants["advantages"] * now.row_sums(log_probs)
            + self._settings.kl_coef * divergences
            - self._settings.entropy_coef * entropies
        )
        return batch.by_unit(losses), {"kl": batch.by_unit(divergences), "entropy": batch.by_unit(entropies)}

    def note(self, figures: Mapping[str, torch.Tensor]) -> None:
        """Keep divergences and entropies for the log."""
        self._divergences += figures["kl"].tolist()
        self._entropies += figures["entropy"].tolist()

    def validate(
        self, model: torch.nn.Module, batches: Sequence[Batch], *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return the loss on held-out records, and reward, axes, KL and entropy of answers to their prompts."""
        prompts = sorted((example for batch in batches for example in batch.examples), key=lambda row: row.unit)
        held_out = answer_held_out(
            model,
            prompts,
            scorer=self._scorer,
            seed=self._materials.seed,
            reference=lambda: other_weights(self._parameters, self._reference),
            token_budget=self._settings.token_budget,
            pad_id=self._materials.pad_id,
            check=check,
        )
        figures = reward_figures(held_out.rollouts)
        return {
            "val_loss": mean_response_loss(model, batches, check=check),
            "val_reward": figures["reward_mean"],
            "val_axes": figures["axes"],
            "val_kl": held_out.kl,
            "val_entropy": held_out.entropy,
            "val_response_tokens": figures["response_tokens"],
            "val_truncated_share": figures["truncated_share"],
        }

    @property
    def query_noise(self) -> Mapping[str, float]:
        """The noised mean reward, for the baseline."""
        return {MEAN_REWARD: self._settings.baseline_noise_multiplier}

    def queries(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return each answer's reward, float64 [units]."""
        rewards = [rollout.score.value for rollout in _rollouts_of(batch)]
        return {MEAN_REWARD: torch.tensor(rewards, dtype=torch.float64)}

    def observe(self, answers: Mapping[str, float]) -> None:
        """Move the baseline. Without privacy an empty draw, which cannot happen there, would say nothing."""
        if MEAN_REWARD in answers:
            self._baseline.update(answers[MEAN_REWARD])

    def observed(self) -> dict[str, Any]:
        """Return this process's answers, with their rewards, divergences and entropies."""
        return {
            "answers": [observed(rollout) for rollout in self._rollouts],
            "kl": self._divergences,
            "entropy": self._entropies,
        }

    def figures(self, shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the step's rewards, KL, entropy, and the baseline that comes of it."""
        answers, divergences, entropies = (
            [value for share in shares for value in share[name]] for name in ("answers", "kl", "entropy")
        )
        return {
            **figures_of_observed(answers),
            "kl": sum(divergences) / len(divergences) if divergences else None,
            "entropy": sum(entropies) / len(entropies) if entropies else None,
            "baseline": self._baseline.value,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the baseline's state."""
        return {"baseline": self._baseline.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the baseline's state back."""
        self._baseline.load_state_dict(state["baseline"])

    def _advantage(self, rollout: Rollout, *, step: int) -> float:
        if step == 0:
            # The self-check's: a reward that happens to equal the baseline would check nothing.
            return self._settings.reward_scale
        return self._settings.reward_scale * (rollout.score.value - self._baseline.value)

    def _physical(self, examples: Sequence[Example]) -> list[Batch]:
        return physical_batches(
            examples,
            token_budget=self._settings.token_budget,
            pad_id=self._materials.pad_id,
            device=self._parameters[0].device,
        )

    def _forget(self) -> None:
        self._rollouts, self._divergences, self._entropies = [], [], []


def _rollouts_of(batch: Batch) -> list[Rollout]:
    rollouts = [example for example in batch.examples if isinstance(example, Rollout)]
    assert len(rollouts) == len(batch.examples), "a batch that `prepare` has not made"
    return rollouts
