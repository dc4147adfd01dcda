"""Metrics of an evaluation: one module per metric, with its name in the configuration. Must not import torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sealed_experts.features import Feature, Features
from sealed_experts.rewards import Score, Scoring
from sealed_experts.settings.fields import Group


@dataclass(frozen=True, kw_only=True)
class Case:
    """One held-out record, and a model's results on it.

    Attributes:
        question: the question, without a template.
        gold: the record's own answer.
        loss: the sum over the tokens of `gold`, in nats.
        tokens: number of tokens of `gold`; 0 if the question leaves no room for an answer.
        prediction: the sampled answer, which can be empty; None if no answer was sampled, or if the question leaves no
            room for one.
        score: the reward's score of the prediction; None without a reward or a prediction.
    """

    question: str
    gold: str
    loss: float = 0.0
    tokens: int = 0
    prediction: str | None = None
    score: Score | None = None

    @property
    def answer(self) -> str:
        """The prediction; an empty text if there is none."""
        return self.prediction or ""


@dataclass(frozen=True)
class Losses:
    """A model's losses on all records.

    Attributes:
        mean: over all tokens of the records' answers, in nats, added up in the same order as in the stages' validation;
            None without any token.
        sums: the sum for each record, over the tokens of its own answer.
        tokens: the number of these tokens.
    """

    mean: float | None
    sums: Sequence[float]
    tokens: Sequence[int]

    def minus(self, other: "Losses") -> "Losses":
        """Return the differences from another model's losses on the same records."""
        known = self.mean is not None and other.mean is not None
        mean = self.mean - other.mean if known else None  # type: ignore[operator]
        return Losses(mean, differences(self.sums, other.sums), self.tokens)


class Metric(Feature, Group):
    """A measure of answers, or of losses: its fields are its settings.

    A record has one value, or several with their own names (`reward.safety`). Each value gives numbers to add up
    (`parts`). The figure of all records is a function of these sums (`figure`): by default a mean.
    """

    title: ClassVar[str]  # its name in tables
    unit: ClassVar[str] = ""
    # What it needs: the `losses` of the records' own answers, sampled `answers`, or a `reward` for these.
    needs: ClassVar[Literal["losses", "answers", "reward"]] = "answers"
    usual: ClassVar[bool] = False  # whether it is measured, if possible, when the settings name no metrics
    higher_is_better: ClassVar[bool] = True
    # The value of a record without a usable answer; None: such a record does not count.
    worst: ClassVar[float | None] = 0.0
    compared: ClassVar[bool] = True  # whether to state a stage's gain over the one before it
    revision: ClassVar[int] = 1  # raised when its numbers get another meaning

    def owns(self, name: str) -> bool:
        """Tell whether a value with this name belongs to the metric."""
        return name.partition(".")[0] == self.feature

    def measure(self, case: Case) -> float:
        """Return the value of a record with a usable answer."""
        raise NotImplementedError

    def usable(self, case: Case) -> bool:
        """Tell whether a record can be measured: by default, whether its answer is not empty."""
        return bool(case.answer)

    def values(self, case: Case) -> Mapping[str, float]:
        """Return a record's values by name: the metric's name, or that with a dot and a part (`reward.safety`).

        A missing value counts as the `worst`.
        """
        return {self.feature: self.measure(case)} if self.usable(case) else {}

    def parts(self, case: Case, value: float) -> tuple[float, ...]:
        """Return the numbers to add up over records for one value: by default the value and its weight, 1."""
        return (value, 1.0)

    def figure(self, *sums: Any) -> Any:
        """Return the figure from the sums of all parts: by default, the first over the second, a (weighted) mean.

        The sums are numbers, or arrays of one shape with one resample per place.
        """
        total, weight = sums
        return total / weight

    def combined(self, columns: Sequence[Sequence[float]], losses: Losses) -> float | None:
        """Return the figure of all records; None if there is nothing to measure.

        Args:
            columns: the parts, each [records].
            losses: the losses on the same records.
        """
        sums = [math.fsum(column) for column in columns]
        return float(self.figure(*sums)) if any(sums) else None

    def shown(self, value: float) -> float | None:
        """Return a value or figure in the metric's unit: a growing function of it; None beyond what JSON can hold."""
        return value

    def described(self, name: str, reward: Scoring | None) -> dict[str, Any]:
        """Return the facts that tables need to show one of its values: `title`, `unit`, `higher_is_better`.

        Args:
            name: the value's name.
            reward: scores the answers; None if nothing scores them.
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
