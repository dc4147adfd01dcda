"""Check every score of a reward: finite numbers in [0, 1], and always the same axes."""

import math
import numbers
from collections.abc import Mapping

from sealed_experts.errors import UserError
from sealed_experts.rewards import Reward, Score
from sealed_experts.rewards.language.repetition import repetition
from sealed_experts.settings.messages import listed, shown
from sealed_experts.text import one_line

REPETITION = "repetition"
_ROUNDING = 1e-9  # rounding: a sum of shares can differ from 1 by this much


class CheckedReward:
    """A reward whose scores are checked, and lowered for repetition if `repetition_penalty` is set."""

    def __init__(self, reward: Reward) -> None:
        """Take a reward. Its `repetition_penalty` is the share that an answer of pure repetition loses."""
        self.name = reward.name
        self.weights: Mapping[str, float] = dict(reward.weights)
        self.repetition_penalty = reward.repetition_penalty
        self._reward = reward
        self._axes: set[str] | None = None

    def score(self, prompt: str, response: str) -> Score:
        """Return the score; with a penalty p, value · (1 - p · repetition) and the axis `repetition`.

        Raises:
            UserError: the reward failed, or returned a wrong value or wrong axes.
        """
        raw = self._reward.score(prompt, response)
        value = self._number("it", raw.value, prompt)
        axes = {axis: self._number(f"its axis `{axis}`", number, prompt) for axis, number in raw.axes.items()}
        if self._axes is None or axes.keys() != self._axes:
            self._check_axes(axes, prompt)
        if self.repetition_penalty:
            axes[REPETITION] = repetition(response)
            value *= 1.0 - self.repetition_penalty * axes[REPETITION]
        return Score(value, axes)

    def _number(self, what: str, value: object, prompt: str) -> float:
        number = _as_float(value)
        if number is None:
            raise UserError(
                f"reward {self.name}: for the prompt {shown(prompt)} {what} returned {_shown(value)}, which is no"
                " number; return a float from 0 to 1"
            )
        if not -_ROUNDING <= number <= 1.0 + _ROUNDING:  # also refuses NaN
            raise UserError(
                f"reward {self.name}: for the prompt {shown(prompt)} {what} returned {_shown(value)}, which is outside"
                " [0, 1]; scale it"
            )
        return min(1.0, max(0.0, number))

    def _check_axes(self, axes: Mapping[str, float], prompt: str) -> None:
        if self._axes is not None:
            raise UserError(
                f"reward {self.name}: for the prompt {shown(prompt)} the axes are {listed(axes)}, and before they were"
                f" {listed(sorted(self._axes))}; always return the same"
            )
        if self.repetition_penalty and REPETITION in axes:
            raise UserError(
                f"reward {self.name}: `{REPETITION}` is the name of the axis that repetition_penalty adds; call the"
                " reward's own axis something else, or set the penalty to 0"
            )
        self._axes = set(axes)


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer above the largest float
        return math.inf
    except Exception:  # the user's own type; the caller reports it
        return None


def _shown(value: object) -> str:
    try:
        text = one_line(repr(value), most=60)
    except Exception:  # an error in the user's own type must not hide the message
        text = "an object that does not show itself"
    return f"{text} ({type(value).__name__})"
