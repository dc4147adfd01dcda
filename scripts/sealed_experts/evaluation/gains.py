"""Decide whether a stage's gain in reward counts, or comes from luck or with a worse model."""

import math
from collections.abc import Mapping
from typing import Any

MOST_KL = 0.5  # nats per token, from the adapter that the stage started from
MOST_PERPLEXITY = 1.05  # times the held-out perplexity before
_ROUNDING = 1e-9  # rounding: equal figures, added up in another order, can differ by this much

_CLOSE = "kl_at_most_0.5"
_INTACT = "perplexity_at_most_5_percent_worse"
_FINISHED = "cut_answers_not_more_frequent"
_GAINED = "reward_gain_above_zero"


def gain_checks(gain: Mapping[str, Any], *, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, bool]:
    """Return the conditions that a gain in reward must meet to count, by name.

    Args:
        gain: one of an evaluation's `gains`.
        before: the model before the gain, of an evaluation's `models`.
        after: the model with the gain.
    """
    low, worse = gain["metrics"]["reward"]["low"], _perplexity_ratio(before, after)
    cut_before, cut = before["truncated_share"], after["truncated_share"]
    return {
        _CLOSE: after["kl"] is not None and after["kl"] <= MOST_KL,
        _INTACT: worse is not None and worse <= MOST_PERPLEXITY + _ROUNDING,
        _FINISHED: cut is not None and cut_before is not None and cut <= cut_before + _ROUNDING,
        _GAINED: low is not None and low > _ROUNDING,
    }


def rewarded_gain(evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the gain that the checks are about: that of the stage with the reward; None without one."""
    stage = evaluation["reward"]["stage"] if evaluation["reward"] else None
    return next((gain for gain in evaluation["gains"] if gain["to"] == stage), None)


def verdict(evaluation: Mapping[str, Any]) -> str | None:
    """Return `counts`, or `does not count: ` and all reasons; None if no reward was measured."""
    gain = rewarded_gain(evaluation)
    if gain is None:
        return None
    reasons = [
        reason
        for name, reason in _reasons(evaluation["models"], gain).items()
        if not evaluation["checks"].get(name, False)
    ]
    return f"does not count: {'; '.join(reasons)}" if reasons else "counts"


def loss_of(model: Mapping[str, Any]) -> float | None:
    """Return a model's held-out loss; None if it was not measured."""
    loss: float | None = model["metrics"].get("loss", {}).get("mean")
    return loss


def _perplexity_ratio(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Return the held-out perplexity after a stage, as a multiple of that before; None if a loss was not measured."""
    was, now = loss_of(before), loss_of(after)
    return None if was is None or now is None else math.exp(now - was)


def _reasons(models: Mapping[str, Any], gain: Mapping[str, Any]) -> dict[str, str]:
    before, after, reward = models[gain["from"]], models[gain["to"]], gain["metrics"]["reward"]
    kl = "is not known" if after["kl"] is None else f"of {after['kl']:.2f} nats per token is above {MOST_KL:g}"
    ratio = _perplexity_ratio(before, after)
    worse = "is not known" if ratio is None else f"is {ratio - 1:.1%} worse, more than {MOST_PERPLEXITY - 1:.0%}"
    shares = before["truncated_share"], after["truncated_share"]
    cut = "is not known" if None in shares else "rose from {:.1%} to {:.1%}".format(*shares)
    if reward["low"] is None:
        luck = "too few held-out prompts for a 95 % interval"
    else:
        luck = f"the 95 % interval of the gain, {reward['low']:+.3f} to {reward['high']:+.3f}, is not above zero"
    return {
        _CLOSE: f"KL {kl}",
        _INTACT: f"the held-out perplexity {worse}",
        _FINISHED: f"the share of cut answers {cut}",
        _GAINED: luck,
    }
