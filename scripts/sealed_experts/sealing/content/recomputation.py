"""Whether the ε that a receipt claims follows from the events that it lists, by another accountant than the ledger's.

The ledger states upper bounds; the second accountant gives bounds from both sides. A claim below the lower one is false
whatever the ledger's accountant was, and is refused. What cannot be recomputed is refused too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.events import GaussianEvent, combined_noise_multiplier, events_from_json
from sealed_experts.sealing.content.receipt import RECEIPT
from sealed_experts.sealing.errors import PackageError

_COARSEST = 0.02  # of the claim: bounds further apart than this prove nothing worth saying
# What the events mean. Another relation, sampling or mechanism has another ε.
_MEANING = {
    "enabled": True,
    "mode": "release",
    "neighbouring": "add_or_remove_one",
    "sampling": "poisson",
    "mechanism": "gaussian_on_clipped_sums",
}
_OPTIONAL = ("mechanism",)  # receipts of earlier versions do not name it


def recompute_privacy(receipt: Mapping[str, Any]) -> None:
    """Recompute the joint ε of a receipt's events, and of each stage, and hold the claims against it.

    A receipt that claims no ε must say why; then there is nothing to recompute. Takes seconds.

    Raises:
        PackageError: it claims less than its events cost, its fields contradict its events, or it cannot be recomputed.
    """
    if receipt.get("epsilon") is None:
        if not isinstance(receipt.get("reason"), str) or not receipt["reason"]:
            raise PackageError(f"{RECEIPT}: it states neither an ε nor a reason why not")
        return
    for field, meaning in _MEANING.items():
        if receipt.get(field, meaning if field in _OPTIONAL else None) != meaning:
            raise PackageError(
                f"{RECEIPT}: {field} is {ascii(receipt.get(field))[:100]}, under which no ε can be recomputed; it must"
                f" be {meaning!r}"
            )
    try:
        events = events_from_json(receipt.get("events"))
    except UserError as error:
        raise PackageError(f"{RECEIPT}: {str(error)[:300]!a}") from error
    delta = _delta(receipt)
    _check_last_stage(receipt, events)
    claims = _stage_claims(receipt, events)
    for count, (field, claim) in claims.items():
        _check_claim(events[:count], delta=delta, field=field, claim=claim)
    whole = _check_claim(events, delta=delta, field="epsilon", claim=_number(receipt["epsilon"], "epsilon"))
    _check_over_releases(receipt.get("over_releases"), low=whole)


def _delta(receipt: Mapping[str, Any]) -> float:
    delta, units = _number(receipt.get("delta"), "delta"), receipt.get("units")
    if not 0 < delta < 1:
        raise PackageError(f"{RECEIPT}: delta is {delta}; it must lie inside (0, 1)")
    if isinstance(units, int) and delta * units >= 1:
        raise PackageError(
            f"{RECEIPT}: delta is {delta:g}, not below 1/{units}: publishing one whole unit would count as private"
        )
    return delta


def _check_last_stage(receipt: Mapping[str, Any], events: Sequence[GaussianEvent]) -> None:
    """The receipt's single fields describe its last stage: they must be those of the last event."""
    if not events:
        raise PackageError(f"{RECEIPT}: it claims an ε but lists no events")
    last, stated = events[-1], dict(receipt)
    noises = [stated.get("noise_multiplier"), *(stated.get("queries") or {}).values()]
    if all(isinstance(noise, int | float) and noise > 0 for noise in noises):
        stated.setdefault("effective_noise_multiplier", combined_noise_multiplier(noises))
    if isinstance(stated.get("expected_batch_size"), int) and isinstance(stated.get("units"), int):
        stated["expected_batch_size / units"] = stated["expected_batch_size"] / max(1, stated["units"])
    for field, found in (
        ("sample_rate", last.sample_rate),
        ("expected_batch_size / units", last.sample_rate),
        ("effective_noise_multiplier", last.noise_multiplier),
        ("steps", last.steps),
    ):
        if field in stated and not math.isclose(_number(stated[field], field), found, rel_tol=1e-9):
            raise PackageError(f"{RECEIPT}: {field} is {stated[field]}, but its last event says {found}")


def _stage_claims(receipt: Mapping[str, Any], events: Sequence[GaussianEvent]) -> dict[int, tuple[str, float]]:
    """Return {how many of the events: (field, claim)} of every stage's joint ε."""
    ends = {event.stage: count for count, event in enumerate(events, start=1)}
    claims = {}
    for stage, claim in (receipt.get("stage_epsilon") or {}).items():
        if stage not in ends:
            raise PackageError(f"{RECEIPT}: stage {stage[:64]!a} has no event, so what it released is not counted")
        claims[ends[stage]] = (f"stage_epsilon.{stage}", _number(claim, f"stage_epsilon.{stage}"))
    return claims


def _check_claim(events: Sequence[GaussianEvent], *, delta: float, field: str, claim: float) -> float:
    """Check one claim and return what the true ε is at least."""
    from sealed_experts.sealing.content.second_accountant import (
        epsilon_bounds,  # scipy, which other commands need not load
    )

    bounds = epsilon_bounds(_groups(events), delta=delta, near=claim)
    if bounds is not None and claim < bounds.low:
        raise PackageError(
            f"{RECEIPT}: {field} is {claim:.6g}, but its events cost at least {bounds.low:.6g} at δ = {delta:g}"
        )
    if bounds is None or bounds.high - bounds.low > _COARSEST * claim + 1e-3:
        raise PackageError(
            f"{RECEIPT}: {field} is {claim:.6g} at δ = {delta:g}, which is beyond what can be recomputed"
        )
    return bounds.low


def _groups(events: Sequence[GaussianEvent]) -> dict[tuple[float, float], int]:
    """Return the steps of each kind. Of one noise key, the longest run holds the shorter ones."""
    kinds: dict[Any, GaussianEvent] = {}
    for place, event in enumerate(events):
        key = (event.key_id or place, event.sample_rate, event.noise_multiplier)
        if key not in kinds or kinds[key].steps < event.steps:
            kinds[key] = event
    groups: dict[tuple[float, float], int] = {}
    for event in kinds.values():
        pair = (event.sample_rate, event.noise_multiplier)
        groups[pair] = groups.get(pair, 0) + event.steps
    return groups


def _check_over_releases(statement: Any, *, low: float) -> None:
    if not isinstance(statement, Mapping) or statement.get("epsilon") is None:
        return
    claim = _number(statement["epsilon"], "over_releases.epsilon")
    if claim < low:
        raise PackageError(
            f"{RECEIPT}: over_releases.epsilon is {claim:.6g}, but this version alone costs at least {low:.6g}"
        )


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise PackageError(f"{RECEIPT}: {field} must be a number of at least 0, not {ascii(value)[:100]}")
    return float(value)
