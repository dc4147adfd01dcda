"""Whether a stage's gain in reward counts, or is bought with a worse model or mere luck."""

from collections.abc import Iterable, Mapping
from typing import Any

MOST_KL = 0.5  # nats a token, from the adapter that the stage started from
MOST_LOSS = 1.1  # times the held-out loss before
_ROUNDING = 1e-9  # equal rewards, added up from other axes, may differ by so much

_REWARDED = "reinforce"
_CLOSE = "kl_at_most_0.5"
_INTACT = "loss_at_most_10_percent_worse"
_GAINED = "reward_gain_above_zero"


def gain_checks(gain: Mapping[str, Any], *, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, bool]:
    """Return what a gain in reward must satisfy to count, by name.

    Args:
        gain: one of an evaluation's `gains`.
        before: the model that it starts from, of an evaluation's `models`.
        after: the model that has it.
    """
    low = (gain["reward"] or {}).get("low")
    known = before["loss"] is not None and after["loss"] is not None
    return {
        _CLOSE: after["kl"] is not None and after["kl"] <= MOST_KL,
        _INTACT: known and after["loss"] <= MOST_LOSS * before["loss"],
        _GAINED: low is not None and low > _ROUNDING,
    }


def rewarded_gain(gains: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the one of an evaluation's `gains` that its checks are about; None where no stage has a reward."""
    return next((gain for gain in gains if gain["to"] == _REWARDED), None)


def verdict(evaluation: Mapping[str, Any]) -> str | None:
    """Return `counts`, or `does not count: ` and every reason; None where no stage has a reward."""
    gain = rewarded_gain(evaluation["gains"])
    if gain is None:
        return None
    reasons = [
        reason
        for name, reason in _reasons(evaluation["models"], gain).items()
        if not evaluation["checks"].get(name, False)
    ]
    return f"does not count: {'; '.join(reasons)}" if reasons else "counts"


def _reasons(models: Mapping[str, Any], gain: Mapping[str, Any]) -> dict[str, str]:
    before, after, reward = models[gain["from"]], models[gain["to"]], gain["reward"]
    kl = "is not known" if after["kl"] is None else f"of {after['kl']:.2f} nats a token is above {MOST_KL:g}"
    losses = (before["loss"], after["loss"])
    worse = "is not known" if None in losses else f"is {after['loss'] / before['loss'] - 1:.0%} worse, more than 10%"
    if reward is None or reward["low"] is None:
        luck = "too few held-out prompts for a 95 % interval"
    else:
        luck = f"the 95 % interval of the gain, {reward['low']:+.3f} to {reward['high']:+.3f}, is not above zero"
    return {_CLOSE: f"KL {kl}", _INTACT: f"the held-out loss {worse}", _GAINED: luck}
