"""A language model as a policy: log-probabilities of sampled tokens, divergence from a reference, entropy."""

import contextlib
from collections.abc import Iterator, Sequence

import torch


def nucleus_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, *, sizes: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the log-probability of each token under the policy that sampled it, with gradient, [positions].

    The policy is the softmax of the logits over `temperature`, cut down to its nucleus (Holtzman et al., "The Curious
    Case of Neural Text Degeneration", 2020). The nucleus is held fixed at the size it had when the token was sampled,
    and always holds the token, in place of its least likely one where need be: a likelihood at its edge does not jump
    with the last bit of a logit.

    Args:
        logits: [positions, vocabulary].
        tokens: [positions].
        sizes: [positions], how many of the likeliest tokens were sampled from.
        temperature: above 0.
    """
    scaled = logits / temperature
    chosen = scaled.gather(1, tokens[:, None])
    vocabulary = scaled.shape[1]
    if bool((sizes < vocabulary).any()):
        with torch.no_grad():
            likeliest = scaled.topk(int(sizes.max()), dim=1).values
            likeliest = torch.cat([torch.full_like(likeliest[:, :1], torch.inf), likeliest], dim=1)
            least, before = (likeliest.gather(1, sizes[:, None] - place) for place in (0, 1))
            outside = scaled < torch.where(chosen >= least, least, before)
            outside.scatter_(1, tokens[:, None], False)
        scaled = scaled.masked_fill(outside, -torch.inf)
    return chosen[:, 0] - scaled.logsumexp(1)


def kl_divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return KL(π ‖ reference) in nats at each position, [positions], summed over the whole vocabulary.

    Along sampled answers this is the Rao-Blackwellised estimator of the answers' divergence (Amini, Vieira and
    Cotterell, "Better Estimation of the KL Divergence Between Language Models", 2025): exact at each position, and
    never negative, where the usual estimators take the sampled token's log-ratio. As a loss, its gradient is that of
    each position's divergence with the sampled words before it held fixed.

    Args:
        logits: [positions, vocabulary] of π.
        reference: the same of the reference, without gradient.
    """
    ours, theirs = logits.log_softmax(1), reference.log_softmax(1)
    return (ours.exp() * (ours - theirs)).sum(1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats at each position, [positions]."""
    log_probs = logits.log_softmax(1)
    return -(log_probs.exp() * log_probs).sum(1)


@contextlib.contextmanager
def other_weights(parameters: Sequence[torch.nn.Parameter], weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let the parameters hold other weights for a while, without gradient: a reference that costs no second model."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, other in zip(parameters, weights, strict=True):
            parameter.data = other
        with torch.no_grad():
            yield
    finally:
        for parameter, weight in zip(parameters, own, strict=True):
            parameter.data = weight
