"""A language model as a policy: log-probabilities of sampled tokens, divergence from a reference, entropy."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def nucleus_log_probs(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    *,
    sizes: torch.Tensor | None,
    temperature: float,
    largest: int | None = None,
) -> torch.Tensor:
    """Return the log-probability of each token under the policy that sampled it, with gradient, [positions].

    The policy is the softmax of logits / `temperature`, cut down to its nucleus (Holtzman et al., "The Curious Case of
    Neural Text Degeneration", 2020). The nucleus keeps the size that it had when the token was sampled. It always holds
    the token: if rounding would put the token outside, the token replaces the least likely one. So a likelihood at the
    edge does not jump with the last bit of a logit.

    Args:
        logits: [positions, vocabulary].
        tokens: [positions].
        sizes: [positions], the nucleus's number of tokens; None for the whole vocabulary.
        temperature: above 0.
        largest: an upper bound of `sizes`; required inside `vmap`, where values cannot be read.
    """
    scaled = logits / temperature
    chosen = scaled.gather(-1, tokens[..., None])
    if sizes is not None:
        with torch.no_grad():
            ranks = ranking(scaled)
            likeliest = ranks.topk(int(sizes.max()) if largest is None else largest, dim=-1).values
            likeliest = torch.cat([torch.full_like(likeliest[..., :1], torch.inf), likeliest], dim=-1)
            least, before = (likeliest.gather(-1, sizes[..., None] - place) for place in (0, 1))
            outside = ranks < torch.where(ranks.gather(-1, tokens[..., None]) >= least, least, before)
            outside = outside.scatter(-1, tokens[..., None], False)
        scaled = scaled.masked_fill(outside, -torch.inf)
    return chosen[..., 0] - scaled.logsumexp(-1)


def ranking(scores: torch.Tensor) -> torch.Tensor:
    """Return scores without ties, [rows, vocabulary], float64: of equal scores, the lower token id gets the higher one.

    Equal scores are common in bfloat16, and `topk` does not define their order.
    """
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float64)
    return scores.to(torch.float64) - 1e-12 * places


def policy_terms(
    logits: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log π of each token, KL(π ‖ reference) and the entropy of π in nats at each position, all [positions].

    The first is `nucleus_log_probs` for the whole vocabulary at temperature 1.

    Along sampled answers, this KL is the Rao-Blackwellised estimator of the answers' divergence (Amini, Vieira and
    Cotterell, "Better Estimation of the KL Divergence Between Language Models", 2025). It sums over the whole
    vocabulary, so it is exact at each position and never negative. The usual estimators take the log-ratio of the
    sampled token. As a loss, its gradient is that of each position's divergence, with the earlier tokens held fixed.

    Args:
        logits: [positions, vocabulary] of π.
        reference: [positions, vocabulary] of the reference, without gradient.
        tokens: [positions].
    """
    chosen, divergence, entropy, *_ = _PolicyTerms.apply(logits, reference, tokens)
    return chosen, divergence, entropy


class _PolicyTerms(torch.autograd.Function):
    """All three terms in one pass, with explicit gradients: autograd would read the wide vocabulary many times.

    Any number of dimensions may come before the vocabulary.

    With d = log π - log reference: ∂KL/∂z = π (d - KL), ∂H/∂z = -π (log π + H), ∂log π(token)/∂z = 1(token) - π.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_probs = logits.log_softmax(-1)
        probabilities = log_probs.exp()
        difference = log_probs - reference.log_softmax(-1)
        chosen = log_probs.gather(-1, tokens[..., None])[..., 0]
        divergence = torch.linalg.vecdot(probabilities, difference).clamp(min=0.0)
        entropy = -torch.linalg.vecdot(probabilities, log_probs)
        return chosen, divergence, entropy, log_probs, probabilities, difference

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        _, divergence, entropy, log_probs, probabilities, difference = output
        ctx.mark_non_differentiable(log_probs, probabilities, difference)
        ctx.save_for_backward(inputs[2], divergence, entropy, log_probs, probabilities, difference)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        tokens, divergence, entropy, log_probs, probabilities, difference = ctx.saved_tensors
        of_chosen, of_divergence, of_entropy = (gradient[..., None] for gradient in gradients[:3])
        result = difference * of_divergence
        result.addcmul_(log_probs, of_entropy, value=-1)
        result -= divergence[..., None] * of_divergence + entropy[..., None] * of_entropy + of_chosen
        return result.mul_(probabilities).scatter_add_(-1, tokens[..., None], of_chosen), None, None


@contextlib.contextmanager
def other_weights(parameters: Sequence[torch.nn.Parameter], weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Give the parameters other weights in this block, without gradient: a reference without a second model."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, other in zip(parameters, weights, strict=True):
            parameter.data = other
        with torch.no_grad():
            yield
    finally:
        for parameter, weight in zip(parameters, own, strict=True):
            parameter.data = weight
