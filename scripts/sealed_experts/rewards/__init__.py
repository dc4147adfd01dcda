"""Rewards score sampled answers: one module per reward, with its name in the configuration. Must not import torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from sealed_experts.features import Feature, Features
from sealed_experts.settings.fields import Group, plain, setting, text
from sealed_experts.settings.messages import KeyPath


@dataclass(frozen=True)
class Score:
    """The score of an answer.

    `value` is in [0, 1]. `axes` are the reward's single measures, each in [0, 1] and without its weight. If there is
    only one measure, it has the reward's name.
    """

    value: float
    axes: Mapping[str, float]


class Scoring(Protocol):
    """Anything that scores answers."""

    @property
    def name(self) -> str:
        """The name that messages and axes use."""

    @property
    def weights(self) -> Mapping[str, float]:
        """{axis: its share of the value}; the shares add up to 1."""

    def score(self, prompt: str, response: str) -> Score:
        """Return the score of an answer to a prompt."""


class Reward(Feature, Group):
    """Scores answers. The same prompt and answer always get the same score. Its fields are its options."""

    repetition_penalty: float = setting(
        "Takes up to this share of the reward away from answers that repeat themselves or list terms without grammar"
        " (measured on English).",
        default=0.0,
        ge=0,
        le=1,
    )

    about: ClassVar[str]  # what it measures, in a few words

    @property
    def name(self) -> str:
        """The name that messages and axes use."""
        return self.feature

    @property
    def weights(self) -> Mapping[str, float]:
        """{axis: its share of the value}; the shares add up to 1. An axis without a share is for information."""
        return {self.name: 1.0}

    def score(self, prompt: str, response: str) -> Score:
        """Return the score of an answer to a prompt; by default with one axis, from `measure`."""
        value = self.measure(response)
        return Score(value, {self.name: value})

    def measure(self, response: str) -> float:
        """Return the value of an answer, in [0, 1]. Use it if the prompt does not matter."""
        raise NotImplementedError

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield (place within the options, what is wrong) for options that do not fit together."""
        yield from ()

    def options(self) -> dict[str, Any]:
        """Return every option as plain data. Two spellings of the same reward give equal data."""
        return {name: plain(getattr(self, name)) for name in type(self).model_fields}

    def chosen(self) -> Iterator[type[Feature]]:
        """Yield the features that it uses: itself, and those that its options name."""
        yield type(self)

    def modules(self) -> list[str]:
        """Return the user's modules that it calls."""
        return []

    def load(self) -> None:
        """Import the modules that it calls.

        Raises:
            UserError: one of the user's modules cannot be used.
        """


REWARDS = Features(Reward, noun="reward")
# A reward's name, or the user's function as `module:function`. `reward_mistakes` checks it.
RewardName = Annotated[
    str, text(r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$", "a reward's name, or `module:function`")
]
