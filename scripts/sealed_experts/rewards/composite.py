"""`composite`: several rewards, weighted."""

import math
from collections.abc import Mapping, Sequence

from sealed_experts.rewards.reward import Reward, Score


class Composite:
    """The weighted mean of other rewards; the weights are divided by their sum.

    The axes of a part are named `<part>.<axis>`, and `<part>` where the axis bears the part's own name. Of parts with
    the same name the second is called `<part>#2`, and so on.
    """

    name = "composite"

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        """Take the parts with their weights, at least one, each weight above 0."""
        total = math.fsum(weight for _, weight in parts)
        labels = _labels([part.name for part, _ in parts])
        self._parts = [(label, part, weight / total) for label, (part, weight) in zip(labels, parts, strict=True)]
        self._weights = {
            _axis(label, part, axis): share * weight
            for label, part, share in self._parts
            for axis, weight in part.weights.items()
        }

    @property
    def weights(self) -> Mapping[str, float]:
        """Each part's axes, weighted within the part and by the part's share."""
        return self._weights

    def score(self, prompt: str, response: str) -> Score:
        """Return the weighted mean and every part's axes."""
        values: list[float] = []
        axes: dict[str, float] = {}
        for label, part, share in self._parts:
            score = part.score(prompt, response)
            values.append(share * score.value)
            axes |= {_axis(label, part, axis): value for axis, value in score.axes.items()}
        return Score(min(1.0, math.fsum(values)), axes)


def _labels(names: Sequence[str]) -> list[str]:
    """Number what is there twice; `#` stands in no reward's name."""
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    return [name if not count else f"{name}#{count + 1}" for name, count in zip(names, earlier, strict=True)]


def _axis(label: str, part: Reward, axis: str) -> str:
    return label if axis == part.name else f"{label}.{axis}"
