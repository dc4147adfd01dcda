"""A model's answers to held-out prompts, and their divergence from another model's."""

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.privacy.streams import Stream, derive_key
from sealed_experts.training.answers import Answer, Answering
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.policy import policy_terms
from sealed_experts.training.response import response_logits

Reference = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers to held-out prompts.

    Attributes:
        answers: one per prompt, in the prompts' order.
        kl: mean over prompts of the mean divergence from the reference, in nats per token; None without a prompt.
        entropy: mean over prompts of the mean entropy, in nats per token; None without a prompt.
    """

    answers: list[Answer]
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
    answering: Answering,
    seed: int,
    reference: Reference,
    token_budget: int,
    pad_id: int,
    number: int = 0,
    check: Callable[[], None] = lambda: None,
) -> HeldOutAnswers:
    """Let the model answer held-out prompts once.

    Args:
        prompts: each with a unit of its own, and room for an answer.
        answering: samples the answers; many prompts at once, also where a step of training draws few.
        seed: the run's seed.
        reference: makes the model, within its context, the one that the divergence is measured from.
        token_budget: of one physical batch.
        pad_id: padding token.
        number: which answers; other numbers give other ones.
        check: called before each physical batch; may raise to give up. While answers are sampled, `answering`'s is.
    """
    answers = answering.answer(model, prompts, stream=held_out_stream(seed), step=number)
    divergences: list[float] = []
    entropies: list[float] = []
    device = next(model.parameters()).device
    for batch in physical_batches(answers, token_budget=token_budget, pad_id=pad_id, device=device):
        check()
        with reference():
            before = response_logits(model, batch)
        now = response_logits(model, batch)
        _, divergence, entropy = policy_terms(now.logits, before.logits, now.tokens)
        divergences += now.row_means(divergence).tolist()
        entropies += now.row_means(entropy).tolist()
    return HeldOutAnswers(
        answers=answers,
        kl=statistics.fmean(divergences) if divergences else None,
        entropy=statistics.fmean(entropies) if entropies else None,
    )
