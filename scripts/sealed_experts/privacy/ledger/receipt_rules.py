"""Rules between the fields of a receipt, and between a receipt and its stages. They do not recompute ε."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.json_schema import JsonSchema
from sealed_experts.privacy.ledger.events import (
    GaussianEvent,
    combined_noise_multiplier,
    distinct_events,
    events_from_json,
)
from sealed_experts.privacy.ledger.receipt_schema import RECEIPT_SCHEMA

_SCHEMA = JsonSchema(RECEIPT_SCHEMA)


class ReceiptError(UserError):
    """A privacy receipt is not what it must be."""


def privacy_summary(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a receipt that a manifest states."""
    summary = {field: receipt.get(field) for field in ("epsilon", "delta", "unit")}
    summary["mode"] = receipt.get("mode") if receipt.get("enabled") is True else "none"
    return {**summary, "reason": receipt["reason"]} if receipt.get("reason") else summary


def check_receipt(receipt: Mapping[str, Any], *, stages: Sequence[str] = ()) -> tuple[GaussianEvent, ...]:
    """Check a receipt against its schema and its rules. Return its events, each noise key once.

    A receipt that claims no ε must give a reason, and must state no ε in any field.

    Args:
        stages: the stages of the package. If an ε is claimed, all of them must be counted.

    Raises:
        ReceiptError: the first mistake, with its field.
    """
    if mistake := _SCHEMA.mistake_in(receipt):
        raise ReceiptError(mistake)
    try:
        # As in the ledger: events of one key with two stages are two releases.
        events = distinct_events(events_from_json(receipt["events"]))
    except UserError as error:
        raise ReceiptError(f"events: {str(error)[:300]!a}") from error
    if receipt["epsilon"] is None:
        return events
    _check_stages(receipt, events, stages)
    _check_delta(receipt)
    _check_last_stage(receipt, events[-1])
    return events


def _check_stages(receipt: Mapping[str, Any], events: Sequence[GaussianEvent], stages: Sequence[str]) -> None:
    released, claimed = {event.stage for event in events}, receipt["stage_epsilon"].keys()
    for stage in (*stages, *claimed):
        if stage not in released:
            raise ReceiptError(f"stage {stage[:64]!a} has no event, so what it released is not counted")
    for stage in stages:
        if stage not in claimed:
            raise ReceiptError(f"stage_epsilon: it lacks {stage}, a stage of this package")


def _check_delta(receipt: Mapping[str, Any]) -> None:
    delta, units = receipt["delta"], receipt["units"]
    if delta >= 1 / units:
        raise ReceiptError(
            f"delta is {delta:g}, not below 1/{units}: at such a δ, publishing one whole unit would count as private"
        )
    over = receipt.get("over_releases")
    if over is None or over["epsilon"] is None:
        return
    if over.get("delta") != delta:
        raise ReceiptError(f"over_releases.delta must equal delta, which is {delta:g}, not {over.get('delta')}")
    if over["epsilon"] < receipt["epsilon"]:
        raise ReceiptError(
            f"over_releases.epsilon is {over['epsilon']:.6g}, but this version alone states {receipt['epsilon']:.6g}"
        )


def _check_last_stage(receipt: Mapping[str, Any], last: GaussianEvent) -> None:
    """Compare the fields that describe the last stage with the last event."""
    together = combined_noise_multiplier([receipt["noise_multiplier"], *receipt["queries"].values()])
    for field, stated, found in (
        ("sample_rate", receipt["sample_rate"], last.sample_rate),
        ("expected_batch_size / units", receipt["expected_batch_size"] / receipt["units"], last.sample_rate),
        ("effective_noise_multiplier", receipt["effective_noise_multiplier"], last.noise_multiplier),
        ("noise_multiplier and queries together", together, last.noise_multiplier),
        ("steps", receipt["steps"], last.steps),
    ):
        if not math.isclose(stated, found, rel_tol=1e-9):
            raise ReceiptError(f"{field}: {stated}, but its last event says {found}")
