"""Events: the steps of the Poisson-subsampled Gaussian mechanism that a stage took on its data."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.errors import UserError

_REQUIRED = {"stage", "noise_multiplier", "sample_rate", "steps"}
_OPTIONAL = {"key_id"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianEvent:
    """Steps of one stage. Each drew every unit with the same probability and released a noised sum of the drawn ones.

    Attributes:
        stage: the stage that took the steps.
        noise_multiplier: noise standard deviation in units of the sensitivity; with several queries on one draw, the
            effective one (`combined_noise_multiplier`).
        sample_rate: probability q, in (0, 1], with which each unit is drawn.
        steps: how many steps.
        key_id: public id of the noise key. Steps of the same key are one release, even if they are listed twice.
    """

    stage: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    key_id: str | None = None

    def __post_init__(self) -> None:
        if not self.stage:
            raise ValueError("an event needs the name of its stage")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"noise_multiplier must be a positive number, not {self.noise_multiplier}")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate must lie in (0, 1], not {self.sample_rate}")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, not {self.steps}")

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain data."""
        data = dataclasses.asdict(self)
        if self.key_id is None:
            del data["key_id"]
        return data

    @classmethod
    def from_json(cls, data: Any) -> "GaussianEvent":
        """Rebuild an event from plain data.

        Raises:
            UserError: a field is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"a privacy event must be a mapping, not {type(data).__name__}")
        if not _REQUIRED <= set(data) <= _REQUIRED | _OPTIONAL:
            raise UserError(f"a privacy event has the fields {sorted(_REQUIRED)} and key_id, not {sorted(data)}")
        texts = [data["stage"], data.get("key_id", "")]
        numbers = [data["noise_multiplier"], data["sample_rate"], data["steps"]]
        if not all(isinstance(text, str) for text in texts) or not all(type(n) in (int, float) for n in numbers):
            raise UserError(f"a privacy event holds a value of the wrong type: {dict(data)}")
        if not math.isfinite(data["steps"]) or data["steps"] != int(data["steps"]):
            raise UserError(f"a privacy event's steps must be a whole number, not {data['steps']}")
        try:
            return cls(
                stage=data["stage"],
                noise_multiplier=float(data["noise_multiplier"]),
                sample_rate=float(data["sample_rate"]),
                steps=int(data["steps"]),
                key_id=data.get("key_id"),
            )
        except ValueError as error:
            raise UserError(f"not a privacy event: {error}") from error


def events_from_json(data: Any) -> tuple[GaussianEvent, ...]:
    """Rebuild a list of events from plain data.

    Raises:
        UserError: it is not a list of events.
    """
    if not isinstance(data, list | tuple):
        raise UserError(f"privacy events must be a list, not {type(data).__name__}")
    return tuple(GaussianEvent.from_json(item) for item in data)


def combined_noise_multiplier(noise_multipliers: Iterable[float]) -> float:
    """Return the noise multiplier of several Gaussian queries asked of the *same* Poisson draw.

    Each query's sensitivity is scaled by its noise; together they are one Gaussian query with
    sigma = (sum sigma_i^-2)^(-1/2). Counting them as separately subsampled queries would under-report ε.
    """
    return 1.0 / math.sqrt(sum(sigma**-2 for sigma in noise_multipliers))


def distinct_events(events: Iterable[GaussianEvent]) -> tuple[GaussianEvent, ...]:
    """Drop repetitions: keep only the longest event of each key. Events without a key are all kept.

    The same key on the same data releases the same bits, so the longer run contains the shorter one.

    Raises:
        UserError: two events of one key state different noise or sample rates. No run can produce this.
    """
    kept: list[GaussianEvent] = []
    by_key: dict[str, int] = {}
    for event in events:
        if event.key_id is None or event.key_id not in by_key:
            if event.key_id is not None:
                by_key[event.key_id] = len(kept)
            kept.append(event)
            continue
        index = by_key[event.key_id]
        if dataclasses.replace(event, steps=0) != dataclasses.replace(kept[index], steps=0):
            raise UserError(
                f"two privacy events of key {event.key_id} disagree: {event.to_json()} and {kept[index].to_json()}; "
                "one of the files they come from was altered"
            )
        kept[index] = max(kept[index], event, key=lambda item: item.steps)
    return tuple(kept)
