"""A policy's answers to held-out prompts, with their rewards and their divergence from the reference."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.privacy.streams import Stream, derive_key
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.policy import policy_terms
from sealed_experts.training.response import response_logits
from sealed_experts.training.scoring import Rollout, Scorer


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers to held-out prompts.

    Attributes:
        rollouts: one per prompt, in the prompts' order.
        kl: mean over prompts of the mean divergence from the reference, in nats per token; None without a prompt.
        entropy: mean over prompts of the mean entropy, in nats per token; None without a prompt.
    """

    rollouts: list[Rollout]
    kl: float | None
    entropy: float | None


def held_out_stream(seed: int) -> Stream:
    """Return the random stream for held-out sampling. It depends only on the public seed, so all draws repeat."""
    return Stream(derive_key(seed.to_bytes(8, "big", signed=True), "held-out answers"))


@torch.no_grad()
def answer_held_out(
    model: Any,
    prompts: Sequence[Example],
    *,
    scorer: Scorer,
    seed: int,
    reference: Callable[[], AbstractContextManager[object]],
    token_budget: int,
    pad_id: int,
    number: int = 0,
    check: Callable[[], None] = lambda: None,
) -> HeldOutAnswers:
    """Let the policy answer held-out prompts once.

    Args:
        prompts: each must be a separate unit.
        reference: makes a context in which the model is the reference for the divergence.
        seed: the run's seed.
        token_budget: largest number of tokens in one physical batch.
        pad_id: padding token.
        number: each number gives other answers.
        check: called before each physical batch; may raise to stop. While answers are sampled, `scorer` calls its own.
    """
    rollouts = scorer.roll_out(model, prompts, stream=held_out_stream(seed), step=number, held_out=True)
    divergences: list[float] = []
    entropies: list[float] = []
    device = next(model.parameters()).device
    for batch in physical_batches(rollouts, token_budget=token_budget, pad_id=pad_id, device=device):
        check()
        with reference():
            before = response_logits(model, batch)
        now = response_logits(model, batch)
        _, divergence, entropy = policy_terms(now.logits, before.logits, now.tokens)
        divergences += now.row_means(divergence).tolist()
        entropies += now.row_means(entropy).tolist()
    return HeldOutAnswers(
        rollouts=rollouts,
        kl=statistics.fmean(divergences) if divergences else None,
        entropy=statistics.fmean(entropies) if entropies else None,
    )
