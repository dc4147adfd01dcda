"""Pick a token from a row of logits by a uniform number, so that nothing depends on the other rows."""

import torch

from sealed_experts.training.policy import ranking

# This many likeliest tokens nearly always hold the nucleus. More are sorted only if they do not.
LIKELIEST = 256


def pick_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick one token per row by inverting the cumulative distribution at that row's uniform.

    Args:
        logits: float32 [rows, vocabulary].
        uniforms: float64 [rows], each inside (0, 1).
        temperature: divides the logits; at 0 the likeliest token is its own nucleus, the lowest one among equals.
        top_p: probability that the nucleus holds: the fewest likeliest tokens that reach it.

    Returns:
        For each row the token, the size of the nucleus, and the token's log-probability within it (float64).
    """
    if temperature == 0:
        token = ranking(logits).argmax(1)
        return token, torch.ones_like(token), torch.zeros_like(token, dtype=torch.float64)
    vocabulary = logits.shape[1]
    # A vector unit computes the last few of all values another way: let these be fillers, not the last row's tokens.
    logits = torch.nn.functional.pad(logits, (0, -vocabulary % 64), value=-torch.inf)
    if top_p >= 1.0:
        # No order is needed. A float32 per token is precise enough, because the sums are float64.
        scaled = logits / temperature
        scaled -= scaled.amax(1, keepdim=True)
        mass = _cumulative(scaled.exp())
        token = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:]).clamp(max=vocabulary - 1)
        log_prob = scaled.gather(1, token).to(torch.float64) - mass[:, -1:].log()
        return token[:, 0], torch.full_like(token[:, 0], vocabulary), log_prob[:, 0]
    log_probs = (logits / temperature).to(torch.float64).log_softmax(1)
    token, size, log_prob = _pick_from_nucleus(log_probs, uniforms, top_p=top_p, count=LIKELIEST)
    return token, size.clamp(max=vocabulary), log_prob


def _pick_from_nucleus(
    log_probs: torch.Tensor, uniforms: torch.Tensor, *, top_p: float, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick from the nucleus among `count` likeliest tokens; rows that need more of them get more, each for itself."""
    count = min(count, log_probs.shape[1])
    order = ranking(log_probs).topk(count, dim=1).indices
    likeliest = log_probs.gather(1, order)
    mass = _cumulative(likeliest.exp())
    size = ((mass < top_p).sum(1) + 1).clamp(max=count)
    within = mass.gather(1, size[:, None] - 1)
    place = torch.searchsorted(mass, uniforms[:, None] * within)
    place = torch.minimum(place, size[:, None] - 1)
    token, log_prob = order.gather(1, place)[:, 0], (likeliest.gather(1, place) - within.log())[:, 0]
    if count < log_probs.shape[1]:
        for row in (mass[:, -1] < top_p).nonzero()[:, 0].tolist():
            own = slice(row, row + 1)
            token[own], size[own], log_prob[own] = _pick_from_nucleus(
                log_probs[own], uniforms[own], top_p=top_p, count=8 * count
            )
    return token, size, log_prob


def _cumulative(probabilities: torch.Tensor) -> torch.Tensor:
    # cumsum has no deterministic kernel on a GPU.
    return probabilities.cpu().cumsum(1, dtype=torch.float64).to(probabilities.device)
