"""The privacy receipt that goes into a package: what it covers, and which of its fields may be published."""

from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.privacy.ledger.receipt_schema import RECEIPT_FIELDS
from sealed_experts.privacy.ledger.releases import ReleaseLog

_EVENT_FIELDS = ("stage", "noise_multiplier", "sample_rate", "steps")
_PUBLIC = (
    "over_releases: which versions, of whatever experts, were trained on common units is treated as public",
    "names of private data: whether two packages of one owner were made from the same records is treated as public",
)
_MEANING = (
    "the largest ε, over the units of this version's training data, of everything that the publisher had sealed from"
    " the unit when this version was first sealed, itself included and whatever the experts' names; what is sealed"
    " later comes on top"
)


def covering(receipt: Mapping[str, Any], *, shipped: Mapping[str, Any], selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the receipt of a package. It covers the whole chain, also if the package holds an earlier stage.

    In that case the choice of the stage looked at the weights of all stages, so the package depends on what all of them
    released. The receipt says so in `covers`.

    Args:
        receipt: the `privacy` mapping in the last stage's metrics.
        shipped: the same of the stage that the package holds.
        selection: selection.json.

    Raises:
        UserError: the receipt lacks something that the shipped stage released, or claims an ε although that stage has
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


def released(
    privacy: Mapping[str, Any], *, expert: str, units: Iterable[str] | None, log: ReleaseLog
) -> dict[str, Any]:
    """Record a version in the release log and return its receipt with `over_releases`.

    `over_releases` is the joint privacy, for this version's units, of every version of every expert sealed so far, with
    this one: a reader may hold all of them, whatever their names. Versions from other units do not count. Versions that
    were sealed later do not count either, so a version that is sealed again has the same receipt.

    Args:
        privacy: the receipt of the package.
        units: ids of the units in its training data; None if unknown.

    Raises:
        UserError: the mapping is no receipt, or the log is damaged.
    """
    number = log.record(expert=expert, receipt=privacy, units=units)
    if privacy["epsilon"] is None:
        return {**privacy, "over_releases": {"epsilon": None, "reason": privacy["reason"], "meaning": _MEANING}}
    # If the units are unknown, every version counts.
    (lineage,) = log.lineages([privacy])
    joint = log.epsilon_over_releases(delta=privacy["delta"], among=lineage, until=number)
    # For more events, an accountant may use another grid and give a slightly smaller bound. The larger bound is safe.
    epsilon = None if joint.epsilon is None else max(joint.epsilon, privacy["epsilon"])
    return {
        **privacy,
        "public": [*privacy.get("public", ()), *_PUBLIC],
        "over_releases": {"epsilon": epsilon, "delta": joint.delta, "reason": joint.reason, "meaning": _MEANING},
    }


def receipt_bytes(privacy: Mapping[str, Any]) -> bytes:
    """Return privacy_receipt.json for a receipt, with allowed fields only.

    The noise key's id is kept only in release mode, where the key is random. In reproducible mode the key follows from
    the data's digest, so its id would confirm a guess at the data.

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


def _check_fields(privacy: Mapping[str, Any]) -> None:
    missing = [field for field in ("enabled", "epsilon", "events") if field not in privacy]
    if missing:
        raise UserError(f"the metrics' privacy record lacks {missing[0]}: train this stage again")
