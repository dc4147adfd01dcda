"""`composite`: several rewards, weighted."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from sealed_experts.features import Feature
from sealed_experts.rewards import REWARDS, Reward, RewardName, Score
from sealed_experts.rewards.making.checks import reward_problems
from sealed_experts.rewards.making.maker import described_reward, make_reward
from sealed_experts.settings.checking import mistakes_in
from sealed_experts.settings.fields import Group, Open, plain, setting
from sealed_experts.settings.messages import KeyPath, listed

_OF_A_PART = ("reward", "weight")


class Part(Group):
    """Settings of every part besides its reward's own options."""

    reward: RewardName = setting("The reward's name; any but `composite`.")
    weight: float = setting("Its share; shares are divided by their sum.", default=1.0, gt=0)


class Composite(Reward):
    """The weighted mean of other rewards; the weights are divided by their sum.

    The axes of a part are named `<part>.<axis>`, or only `<part>` if the axis has the part's own name. The second part
    of the same name is called `<part>#2`, and so on.
    """

    parts: tuple[Open, ...] = setting(
        "The rewards that it holds, at least one: each its name as `reward`, a `weight`, and its own options.",
        default=(),
    )

    about: ClassVar[str] = "weighted mean of other rewards, its `parts`"
    order: ClassVar[int] = 1

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield what is wrong with each part."""
        if not self.parts:
            yield ("parts",), "none are given; list the rewards to combine: {reward: finance, weight: 2}"
        for place, part in enumerate(self.parts):
            for path, text in _part_problems(part):
                yield ("parts", place, *path), text

    def options(self) -> dict[str, Any]:
        """Return every option, including those of the parts."""
        parts = [
            {"reward": part["reward"], "weight": float(part.get("weight", 1.0))}
            | described_reward(part["reward"], _own(part)).options()
            for part in self.parts
        ]
        return super().options() | {"parts": parts}

    def chosen(self) -> Iterator[type[Feature]]:
        """Yield itself and its parts."""
        yield type(self)
        for part in self.parts:
            yield from described_reward(part["reward"], _own(part)).chosen()

    def modules(self) -> list[str]:
        """Return the modules that its parts call."""
        return [module for part in self.parts for module in described_reward(part["reward"], _own(part)).modules()]

    @functools.cached_property
    def _shares(self) -> list[tuple[str, Any, float]]:
        """The label, the reward and the share of each part."""
        made = [(make_reward(part["reward"], _own(part)), float(part.get("weight", 1.0))) for part in self.parts]
        total = math.fsum(weight for _, weight in made)
        labels = _labels([part.name for part, _ in made])
        return [(label, part, weight / total) for label, (part, weight) in zip(labels, made, strict=True)]

    @property
    def weights(self) -> Mapping[str, float]:
        """The shares of all axes: each part's own shares times the part's share."""
        return {
            _axis(label, part, axis): share * weight
            for label, part, share in self._shares
            for axis, weight in part.weights.items()
        }

    def score(self, prompt: str, response: str) -> Score:
        """Return the weighted mean, and the axes of every part."""
        values: list[float] = []
        axes: dict[str, float] = {}
        for label, part, share in self._shares:
            score = part.score(prompt, response)
            values.append(share * score.value)
            axes |= {_axis(label, part, axis): value for axis, value in score.axes.items()}
        return Score(min(1.0, math.fsum(values)), axes)


def _own(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in part.items() if key not in _OF_A_PART}


def _part_problems(part: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    mistakes = mistakes_in(Part, {key: part[key] for key in _OF_A_PART if key in part})
    for mistake in mistakes:
        yield mistake.path, mistake.text
    if any(mistake.path == ("reward",) for mistake in mistakes):
        return
    if part["reward"] == "composite":
        inner = [name for name in REWARDS if name != "composite"]
        yield ("reward",), f"a composite holds no composite; name {listed(inner)} or your own"
        return
    for path, text in reward_problems(part["reward"], _own(part)):
        yield path or ("reward",), text


def _labels(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once. No reward's name contains `#`."""
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    return [name if not count else f"{name}#{count + 1}" for name, count in zip(names, earlier, strict=True)]


def _axis(label: str, part: Reward, axis: str) -> str:
    return label if axis == part.name else f"{label}.{axis}"
