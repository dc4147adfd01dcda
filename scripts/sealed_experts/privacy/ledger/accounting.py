"""ε of everything that was released about a unit: heterogeneous composition across steps and stages.

The guarantee is add-or-remove-one (ε, δ)-differential privacy of Poisson-subsampled Gaussian releases. The reported ε
is one of three:

- PLD: a valid upper bound, at most about 0.1 % too high (`distributions`).
- Rényi (RDP): also a valid upper bound. It is used if it is below PLD's (the losses are too small for any affordable
  grid), if PLD fails numerically (an exception, an infinite value, or a value below `bounds.lower_bound`, which no true
  ε can be), if δ is too small for double-precision Fourier transforms, or if ε is so large that it means nothing.
- The closed form of the Gaussian mechanism, if every unit is in every step.

dp_accounting takes seconds to import, so it is imported on first use.
"""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sealed_experts.privacy.ledger.events import GaussianEvent, combined_noise_multiplier, distinct_events
from sealed_experts.privacy.ledger.private_stage import PrivacyPlan

if TYPE_CHECKING:
    from sealed_experts.privacy.ledger.bounds import Groups

# Fourier transforms leave about 1e-16 in each of up to a million cells.
SMALLEST_PLD_DELTA = 1e-10
# A larger ε guarantees nothing, and its loss grid would need gigabytes.
LARGEST_PLD_EPSILON = 200.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """An ε and the accountant that computed it: `PLD`, `RDP` or `analytic Gaussian`."""

    epsilon: float
    accountant: str


def epsilon(events: Iterable[GaussianEvent], *, delta: float) -> float:
    """Return the joint ε of `events` at `delta`. It is never below the true value, and 0.0 for no events.

    The order of the events does not matter, and several events of one noise key count once.

    Raises:
        ValueError: `delta` is not inside (0, 1).
        UserError: two events of one key disagree.
    """
    return account(events, delta=delta).epsilon


def account(events: Iterable[GaussianEvent], *, delta: float) -> Account:
    """Return the joint ε of `events` at `delta`, and the accountant that computed it.

    Raises:
        ValueError: `delta` is not inside (0, 1).
        UserError: two events of one key disagree.
    """
    return _account(_groups(events), _checked(delta))


def within(events: Iterable[GaussianEvent], *, delta: float, target: float) -> bool:
    """Say whether `epsilon(events, delta=delta) <= target`. If the cheap bounds decide it, nothing else is computed."""
    listed = tuple(events)
    if upper_bound(listed, delta=delta) <= target:
        return True
    return lower_bound(listed, delta=delta) <= target and epsilon(listed, delta=delta) <= target


def upper_bound(events: Iterable[GaussianEvent], *, delta: float) -> float:
    """Return RDP's upper bound on the joint ε: looser than `epsilon`, and cheap."""
    from sealed_experts.privacy.ledger import bounds

    return bounds.upper_bound(_groups(events), _checked(delta))


def lower_bound(events: Iterable[GaussianEvent], *, delta: float) -> float:
    """Return a lower bound on the true joint ε: far looser than `epsilon`, and cheap."""
    from sealed_experts.privacy.ledger import bounds

    return bounds.lower_bound(_groups(events), _checked(delta))


def describe_accountant(name: str) -> str:
    """Return the accountant's name with its library and version, as receipts state it."""
    return f"{name} (dp-accounting {importlib.metadata.version('dp-accounting')})"


class BudgetCurve:
    """The joint ε of a stage after each number of steps, together with everything released before the stage.

    `epsilon_at(steps)` equals `epsilon([*prior_events, plan.event(steps)])` to the last bit.
    """

    def __init__(self, prior_events: Iterable[GaussianEvent], plan: PrivacyPlan) -> None:
        self._prior = tuple(prior_events)
        self._plan = plan

    def events_at(self, steps: int) -> tuple[GaussianEvent, ...]:
        """Return all events after `steps` steps of the stage, with those before it."""
        return (*self._prior, self._plan.event(steps))

    def epsilon_at(self, steps: int) -> float:
        """Return the joint ε after `steps` steps of the stage; after 0, that of the stages before it."""
        return epsilon(self.events_at(steps), delta=self._plan.delta)

    def steps_within(self, target: float | None = None) -> int:
        """Return the largest number of steps, at most the plan's `max_steps`, whose joint ε is at most `target`.

        `target` defaults to the plan's target_epsilon. The answer is 0 also if the earlier stages alone exceed it.
        """
        limit = self._plan.target_epsilon if target is None else target
        low, high = 0, self._plan.max_steps + 1  # `low` steps fit the budget; `high` do not, or are too many
        if self._fits(high - 1, limit):
            return high - 1
        high -= 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._fits(middle, limit):
                low = middle
            else:
                high = middle
        return low

    def _fits(self, steps: int, target: float) -> bool:
        return within(self.events_at(steps), delta=self._plan.delta, target=target)


@functools.lru_cache(maxsize=1024)
def _account(groups: "Groups", delta: float) -> Account:
    if not groups:
        return Account(epsilon=0.0, accountant="PLD")
    from sealed_experts.privacy.ledger import bounds

    if all(rate == 1.0 for rate, _, _ in groups):
        return _analytic_gaussian(groups, delta)
    rdp = Account(epsilon=bounds.upper_bound(groups, delta), accountant="RDP")
    floor = bounds.lower_bound(groups, delta)
    if delta < SMALLEST_PLD_DELTA or floor > LARGEST_PLD_EPSILON:
        return rdp
    from sealed_experts.privacy.ledger import distributions

    try:
        loss = distributions.pld_epsilon(groups, delta)
    except ValueError:
        return rdp  # dp_accounting failed numerically; RDP's bound does not need it
    sound = math.isfinite(loss) and loss >= floor - 1e-9 - 1e-6 * floor
    return Account(epsilon=loss, accountant="PLD") if sound and loss <= rdp.epsilon else rdp


def _analytic_gaussian(groups: "Groups", delta: float) -> Account:
    """Return the exact ε of unsampled Gaussian releases: Balle and Wang (2018), theorem 8."""
    import dp_accounting

    noise = combined_noise_multiplier(noise / math.sqrt(steps) for _, noise, steps in groups)
    return Account(epsilon=float(dp_accounting.get_epsilon_gaussian(noise, delta)), accountant="analytic Gaussian")


def _groups(events: Iterable[GaussianEvent]) -> "Groups":
    """Return the distinct (sample rate, noise multiplier, steps), sorted: equal compositions get equal groups."""
    totals: dict[tuple[float, float], int] = {}
    for event in distinct_events(events):
        if event.steps:
            pair = (event.sample_rate, event.noise_multiplier)
            totals[pair] = totals.get(pair, 0) + event.steps
    return tuple((rate, noise, steps) for (rate, noise), steps in sorted(totals.items()))


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie inside (0, 1), not {delta}")
    return delta


def joint_stage_epsilons(events: Sequence[GaussianEvent], *, delta: float) -> dict[str, float]:
    """Return the joint ε at each stage's end: that of its event and of all events before it in `events`."""
    return {event.stage: epsilon(events[: index + 1], delta=delta) for index, event in enumerate(events)}
