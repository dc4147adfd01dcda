"""The privacy receipt as a member of a package: what may leave the trainer's machine, and its summary."""

from collections.abc import Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.content.receipt_schema import RECEIPT_FIELDS

RECEIPT = "privacy_receipt.json"
_EVENT_FIELDS = ("stage", "noise_multiplier", "sample_rate", "steps")


def covering(receipt: Mapping[str, Any], *, shipped: Mapping[str, Any], selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the receipt of a package, which is its whole chain's also where an earlier stage is shipped.

    Then the choice has looked at every stage's weights, so the package depends on what all of them released. The
    receipt says so in `covers`.

    Args:
        receipt: the `privacy` mapping of the last stage's metrics.
        shipped: that of the shipped stage's.
        selection: selection.json.

    Raises:
        UserError: the receipt lacks something that the shipped stage released, or claims an ε where that stage has
            none; or one of the mappings is no receipt.
    """
    for privacy in (receipt, shipped):
        _check_fields(privacy)
    stage, chain = selection["stage"], selection["candidates"]
    lacks = [event for event in shipped["events"] if event not in receipt["events"]]
    if lacks or (shipped["epsilon"] is None and receipt["epsilon"] is not None):
        raise UserError(
            f"the privacy receipt of stage {chain[-1]} does not cover stage {stage}, which is to be sealed: they are of"
            " different runs; delete the expert's selection.json and run again"
        )
    if stage == chain[-1]:
        return dict(receipt)
    covers = (
        f"all stages: {', '.join(chain)}; the package holds {stage}, but the choice of it looked at the weights of all;"
        f" noise, batch and steps that are stated for one stage are those of {chain[-1]}"
    )
    return {**receipt, "covers": covers}


def receipt_bytes(privacy: Mapping[str, Any]) -> bytes:
    """Return privacy_receipt.json for the `privacy` mapping of a stage's metrics, by an allow-list of its fields.

    The noise key's id stays only in release mode, where the key is random. In reproducible mode the key follows from
    the data's digest, so that its id would confirm a guess at the data.

    Raises:
        UserError: the mapping is no receipt.
    """
    _check_fields(privacy)
    receipt = {field: privacy[field] for field in RECEIPT_FIELDS if field in privacy}
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


def _check_fields(privacy: Mapping[str, Any]) -> None:
    missing = [field for field in ("enabled", "epsilon", "events") if field not in privacy]
    if missing:
        raise UserError(f"the metrics' privacy record lacks {missing[0]}: train this stage again")
