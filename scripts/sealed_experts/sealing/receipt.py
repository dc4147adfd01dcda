"""The privacy receipt as a member of a package: what may leave the trainer's machine, and its summary."""

from collections.abc import Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json

RECEIPT = "privacy_receipt.json"
_FIELDS = (
    "enabled",
    "mode",
    "unit",
    "units",
    "public",
    "neighbouring",
    "sampling",
    "mechanism",
    "expected_batch_size",
    "sample_rate",
    "noise_multiplier",
    "queries",
    "effective_noise_multiplier",
    "max_grad_norm",
    "steps",
    "events",
    "accountant",
    "delta",
    "target_epsilon",
    "epsilon",
    "stage_epsilon",
    "over_releases",
    "reason",
    "protects",
    "does_not_protect",
)
_EVENT_FIELDS = ("stage", "noise_multiplier", "sample_rate", "steps")


def receipt_bytes(privacy: Mapping[str, Any]) -> bytes:
    """Return privacy_receipt.json for the `privacy` mapping of a stage's metrics, by an allow-list of its fields.

    The noise key's id stays only in release mode, where the key is random. In reproducible mode the key follows from
    the data's digest, so that its id would confirm a guess at the data.

    Raises:
        UserError: the mapping is no receipt.
    """
    missing = [field for field in ("enabled", "epsilon", "events") if field not in privacy]
    if missing:
        raise UserError(f"the metrics' privacy record lacks {missing[0]}: train this stage again")
    receipt = {field: privacy[field] for field in _FIELDS if field in privacy}
    event_fields = (*_EVENT_FIELDS, "key_id") if privacy.get("mode") == "release" else _EVENT_FIELDS
    receipt["events"] = [
        {field: event[field] for field in event_fields if field in event} for event in privacy["events"]
    ]
    return canonical_json(receipt).encode()


def privacy_summary(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's summary of a receipt."""
    summary = {field: receipt.get(field) for field in ("epsilon", "delta", "unit")}
    summary["mode"] = receipt.get("mode") if receipt.get("enabled") is True else "none"
    return {**summary, "reason": receipt["reason"]} if receipt.get("reason") else summary
