"""What scores a sampled answer: one module a reward, named as in the configuration. Nothing here loads torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from sealed_experts.features import Feature, Features
from sealed_experts.settings.fields import Group, plain, setting, text
from sealed_experts.settings.messages import KeyPath


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    `value` is in [0, 1]. `axes` are the reward's single measures, each in [0, 1] and without its weight; a reward of
    one measure names it after itself.
    """

    value: float
    axes: Mapping[str, float]


class Scoring(Protocol):
    """Whatever scores answers."""

    @property
    def name(self) -> str:
        """The name that messages and axes use."""

    @property
    def weights(self) -> Mapping[str, float]:
        """{axis: its share of the value}; the shares add up to 1."""

    def score(self, prompt: str, response: str) -> Score:
        """Return the score of an answer to a prompt."""


class Reward(Feature, Group):
    """Scores answers; the same prompt and answer always get the same score. Its fields are its options."""

    repetition_penalty: float = setting(
        "Takes up to this share of the reward away from answers that repeat themselves or list terms without grammar"
        " (measured on English).",
        default=0.0,
        ge=0,
        le=1,
    )

    about: ClassVar[str]  # what it looks at, in a few words

    @property
    def name(self) -> str:
        """The name that messages and axes use."""
        return self.feature

    @property
    def weights(self) -> Mapping[str, float]:
        """{axis: its share of the value}; the shares add up to 1. An axis without a weight is for information."""
        return {self.name: 1.0}

    def score(self, prompt: str, response: str) -> Score:
        """Return the score of an answer to a prompt; by default, that of a reward of one measure."""
        value = self.measure(response)
        return Score(value, {self.name: value})

    def measure(self, response: str) -> float:
        """Return how good an answer is, in [0, 1], where the prompt does not matter."""
        raise NotImplementedError

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield (place within the options, what is wrong) of options whose single values are right."""
        yield from ()

    def options(self) -> dict[str, Any]:
        """Return every option as plain data: two spellings of the same reward are equal."""
        return {name: plain(getattr(self, name)) for name in type(self).model_fields}

    def chosen(self) -> Iterator[type[Feature]]:
        """Yield the features that it uses: itself, and others that its options name."""
        yield type(self)

    def modules(self) -> list[str]:
        """Return the user's modules that it calls."""
        return []

    def load(self) -> None:
        """Import what it calls.

        Raises:
            UserError: a module of the user's cannot be used.
        """


REWARDS = Features(Reward, noun="reward")
# One of their names, or a function of the user's: `module:function`. Which it is, is checked apart.
RewardName = Annotated[
    str, text(r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$", "a reward's name, or `module:function`")
]
