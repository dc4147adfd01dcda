"""Whether the ε that a receipt claims follows from its events, by another accountant than the ledger's.

The ledger states upper bounds; the second accountant gives bounds from both sides. A claim below the lower bound is
false, so it is refused. A claim that cannot be recomputed is refused too.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.receipt_rules import ReceiptError, check_receipt

if TYPE_CHECKING:
    from sealed_experts.privacy.ledger.second_accountant import Bounds

_COARSEST = 0.02  # of the claim: bounds that are further apart prove nothing useful


def recompute_privacy(receipt: Mapping[str, Any], *, stages: Sequence[str] = ()) -> "Bounds | None":
    """Recompute the joint ε of a receipt's events, and that of each stage, and compare the claims with them.

    Takes seconds; a minute for the longest chain that a receipt can hold.

    Args:
        stages: the package's chain. Every stage of it must be counted.

    Returns:
        The second accountant's bounds on the joint ε; None if the receipt claims none.

    Raises:
        ReceiptError: it claims less than its events cost, its fields contradict its events, or it cannot be recomputed.
    """
    events = check_receipt(receipt, stages=stages)
    if receipt["epsilon"] is None:
        return None
    # Equal claims on equal events, such as that of the last stage and the whole, are computed once.
    claims = {(count, claim): field for count, field, claim in _claims(receipt, events)}
    bounds = {
        (count, claim): _checked(events[:count], delta=receipt["delta"], field=field, claim=claim)
        for (count, claim), field in claims.items()
    }
    return bounds[len(events), receipt["epsilon"]]


def _claims(receipt: Mapping[str, Any], events: Sequence[GaussianEvent]) -> list[tuple[int, str, float]]:
    """Return (number of events, field, claim) of each stage's joint ε and of the whole."""
    ends = {event.stage: count for count, event in enumerate(events, start=1)}
    stages = [(ends[stage], f"stage_epsilon.{stage}", claim) for stage, claim in receipt["stage_epsilon"].items()]
    return [*stages, (len(events), "epsilon", receipt["epsilon"])]


def _checked(events: Sequence[GaussianEvent], *, delta: float, field: str, claim: float) -> "Bounds":
    from sealed_experts.privacy.ledger.second_accountant import (
        epsilon_bounds,  # scipy, which other commands need not load
    )

    bounds = epsilon_bounds(_groups(events), delta=delta, near=claim)
    if bounds is not None and claim < bounds.low:
        raise ReceiptError(f"{field} is {claim:.6g}, but its events cost at least {bounds.low:.6g} at δ = {delta:g}")
    if bounds is None or bounds.high - bounds.low > _COARSEST * claim + 1e-3:
        raise ReceiptError(f"{field} is {claim:.6g} at δ = {delta:g}, which is beyond what can be recomputed")
    return bounds


def _groups(events: Sequence[GaussianEvent]) -> dict[tuple[float, float], int]:
    """Return the steps of each kind."""
    groups: dict[tuple[float, float], int] = {}
    for event in events:
        pair = (event.sample_rate, event.noise_multiplier)
        groups[pair] = groups.get(pair, 0) + event.steps
    return groups
