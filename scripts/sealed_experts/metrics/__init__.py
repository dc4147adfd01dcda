"""What an evaluation measures: one module a metric, named as in the configuration. Nothing here loads torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sealed_experts.features import Feature, Features
from sealed_experts.rewards import Score, Scoring
from sealed_experts.settings.fields import Group


@dataclass(frozen=True, kw_only=True)
class Case:
    """One held-out record, and what a model made of it.

    Attributes:
        question: what is asked, without a template.
        gold: the record's own answer.
        loss: the sum over the tokens of `gold`, in nats.
        tokens: how many tokens `gold` has for the model; 0 if the question leaves no room for any.
        prediction: the answer that was sampled, maybe an empty text; None if none was asked for, or if the question
            leaves no room for one.
        score: what the reward gives the prediction; None without a reward or a prediction.
    """

    question: str
    gold: str
    loss: float = 0.0
    tokens: int = 0
    prediction: str | None = None
    score: Score | None = None

    @property
    def answer(self) -> str:
        """The prediction; an empty text where there is none."""
        return self.prediction or ""


@dataclass(frozen=True)
class Losses:
    """A model's losses on all records.

    Attributes:
        mean: over all tokens of the records' answers, in nats, added up as the stages' validation does it; None without
            any token.
        sums: each record's, over the tokens of its own answer.
        tokens: how many tokens these are.
    """

    mean: float | None
    sums: Sequence[float]
    tokens: Sequence[int]

    def minus(self, other: "Losses") -> "Losses":
        """Return how these losses differ from another model's on the same records."""
        known = self.mean is not None and other.mean is not None
        mean = self.mean - other.mean if known else None  # type: ignore[operator]
        return Losses(mean, differences(self.sums, other.sums), self.tokens)


class Metric(Feature, Group):
    """A measure of answers, or of losses: its fields are its settings.

    A record gives it one value, or several with names of their own (`reward.safety`). Every value gives numbers to add
    up (`parts`), and the figure of all records is a function of these sums (`figure`): by default a mean.
    """

    title: ClassVar[str]  # how tables call it
    unit: ClassVar[str] = ""
    # What must be there to measure it: the `losses` of the records' own answers, sampled `answers`, or a `reward` for
    # these.
    needs: ClassVar[Literal["losses", "answers", "reward"]] = "answers"
    usual: ClassVar[bool] = False  # whether it is measured, where it can be, if the settings name no metrics
    higher_is_better: ClassVar[bool] = True
    # What a record without a usable answer counts; None: it does not count, because there is nothing to measure.
    worst: ClassVar[float | None] = 0.0
    compared: ClassVar[bool] = True  # whether a stage's gain over the one before it is stated
    revision: ClassVar[int] = 1  # raised when its numbers come to mean something else

    def owns(self, name: str) -> bool:
        """Tell whether a value of this name is the metric's."""
        return name.partition(".")[0] == self.feature

    def measure(self, case: Case) -> float:
        """Return the value of a record with a usable answer."""
        raise NotImplementedError

    def usable(self, case: Case) -> bool:
        """Tell whether a record has what is measured: by default, an answer that is not empty."""
        return bool(case.answer)

    def values(self, case: Case) -> Mapping[str, float]:
        """Return a record's values by name: the metric's own, or that with a dot and a part (`reward.safety`).

        What a record lacks counts as the `worst` value.
        """
        return {self.feature: self.measure(case)} if self.usable(case) else {}

    def parts(self, case: Case, value: float) -> tuple[float, ...]:
        """Return what is added up over records for one of a record's values: by default the value and its weight, 1."""
        return (value, 1.0)

    def figure(self, *sums: Any) -> Any:
        """Return the figure from the sums of all parts: by default, the first over the second, a (weighted) mean.

        The sums are numbers, or arrays of one shape, of which each place is one resample.
        """
        total, weight = sums
        return total / weight

    def combined(self, columns: Sequence[Sequence[float]], losses: Losses) -> float | None:
        """Return the figure of all records; None if there is nothing to measure.

        Args:
            columns: the parts, each [records].
            losses: of the same records.
        """
        sums = [math.fsum(column) for column in columns]
        return float(self.figure(*sums)) if any(sums) else None

    def shown(self, value: float) -> float | None:
        """Return a value or figure in the metric's unit: a growing function of it; None beyond what JSON can hold."""
        return value

    def described(self, name: str, reward: Scoring | None) -> dict[str, Any]:
        """Return what tables need to show one of its values, as plain data: `title`, `unit`, `higher_is_better`.

        Args:
            name: the value's name.
            reward: what scores the answers, if anything does.
        """
        part = name.partition(".")[2]
        title = f"· {part}" if part else self.title
        return {"metric": name, "title": title, "unit": self.unit, "higher_is_better": self.higher_is_better}


METRICS = Features(Metric, noun="metric")


def metric_of(name: str) -> type[Metric]:
    """Return the metric that a value belongs to: `reward` for `reward.safety`.

    Raises:
        KeyError: there is none.
    """
    return METRICS[name.partition(".")[0]]


def differences(first: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return the differences, record by record."""
    return [one - two for one, two in zip(first, other, strict=True)]
