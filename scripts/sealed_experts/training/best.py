"""The best validation of a run, and when to stop waiting for a better one: functions of the run's history alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.training.objectives import Stage


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """What a run's validations decide.

    Attributes:
        figure: the one that decides, as it is called in a validation's line.
        less_is_better: whether smaller values are better ones.
        patience: validations in a row without a better value after which the run ends; None for never.
    """

    figure: str
    less_is_better: bool
    patience: int | None

    @classmethod
    def of(cls, settings: Stage) -> "BestValidation | None":
        """Return what a stage's settings ask for; None where validation decides nothing."""
        if not settings.chooses:
            return None
        figure = settings.decided_by
        return cls(figure=figure, less_is_better=settings.monitored[figure], patience=settings.patience)

    def line(self, history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the line of the best validation, the first of equals; None before there is one.

        The one before the first step does not count: an adapter that has learned nothing is no result.

        Raises:
            UserError: a validation has measured nothing.
        """
        lines = self._lines(history)
        sign = 1 if self.less_is_better else -1
        return min(lines, key=lambda line: sign * line[self.figure], default=None)

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the last `patience` validations brought nothing better.

        Raises:
            UserError: as `line`.
        """
        best = self.line(history)
        if best is None or self.patience is None:
            return False
        return sum(line["step"] > best["step"] for line in self._lines(history)) >= self.patience

    def _lines(self, history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        lines = [line for line in history if self.figure in line]
        for line in lines:
            if line[self.figure] is None:
                raise UserError(
                    f"validation of step {line['step']} could not measure {self.figure}, which `patience` and `keep: "
                    "best` look at: the validation records hold no answer to measure; give others, or remove the two"
                )
        return [line for line in lines if line["step"] > 0]
