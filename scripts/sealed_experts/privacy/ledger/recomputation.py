"""Check that the ε in a receipt follows from its events, with another accountant than the ledger's.

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

    It takes seconds, and a minute for the largest number of stages that a receipt can hold.

    Args:
        stages: the stages of the package. All of them must be counted.

    Returns:
        The second accountant's bounds on the joint ε; None if the receipt claims none.

    Raises:
        ReceiptError: the receipt claims less than its events cost, contradicts its events, or cannot be recomputed.
    """
    events = check_receipt(receipt, stages=stages)
    if receipt["epsilon"] is None:
        return None
    # Equal claims about the same events, such as the last stage's and the whole, are checked once.
    claims = {(count, claim): field for count, field, claim in _claims(receipt, events)}
    bounds = {
        (count, claim): _checked(events[:count], delta=receipt["delta"], field=field, claim=claim)
        for (count, claim), field in claims.items()
    }
    return bounds[len(events), receipt["epsilon"]]


def _claims(receipt: Mapping[str, Any], events: Sequence[GaussianEvent]) -> list[tuple[int, str, float]]:
    """Return (number of events, field, claim) for each stage's joint ε and for the total."""
    ends = {event.stage: count for count, event in enumerate(events, start=1)}
    stages = [(ends[stage], f"stage_epsilon.{stage}", claim) for stage, claim in receipt["stage_epsilon"].items()]
    return [*stages, (len(events), "epsilon", receipt["epsilon"])]


def _checked(events: Sequence[GaussianEvent], *, delta: float, field: str, claim: float) -> "Bounds":
    from sealed_experts.privacy.ledger.second_accountant import (
        epsilon_bounds,  # imports scipy, which other commands do not need
    )

    bounds = epsilon_bounds(_groups(events), delta=delta, near=claim)
    if bounds is not None and claim < bounds.low:
        raise ReceiptError(f"{field} is {claim:.6g}, but its events cost at least {bounds.low:.6g} at δ = {delta:g}")
    if bounds is None or bounds.high - bounds.low > _COARSEST * claim + 1e-3:
        raise ReceiptError(f"{field} is {claim:.6g} at δ = {delta:g}, which cannot be recomputed with enough precision")
    return bounds


def _groups(events: Sequence[GaussianEvent]) -> dict[tuple[float, float], int]:
    """Return the steps of each kind."""
    groups: dict[tuple[float, float], int] = {}
    for event in events:
        pair = (event.sample_rate, event.noise_multiplier)
        groups[pair] = groups.get(pair, 0) + event.steps
    return groups
