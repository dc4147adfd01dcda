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


def released(
    privacy: Mapping[str, Any], *, expert: str, units: Iterable[str] | None, log: ReleaseLog
) -> dict[str, Any]:
    """Record a version in the release log and return its receipt with `over_releases`.

    That is the joint privacy, for this version's units, of every version of every expert sealed so far, this one
    included: whoever holds the others too has seen them all, and another name takes nothing back. Versions from other
    units do not count, nor do those that were sealed after this one was for the first time: sealed again, its receipt
    is the same.

    Args:
        privacy: the receipt that the package carries.
        units: ids of the units in its training data; None if unknown.

    Raises:
        UserError: the mapping is no receipt, or the log is damaged.
    """
    number = log.record(expert=expert, receipt=privacy, units=units)
    if privacy["epsilon"] is None:
        return {**privacy, "over_releases": {"epsilon": None, "reason": privacy["reason"], "meaning": _MEANING}}
    # Unknown units may be anyone's: then every version counts.
    (lineage,) = log.lineages([privacy])
    joint = log.epsilon_over_releases(delta=privacy["delta"], among=lineage, until=number)
    # Of more events, an accountant's other grid may give a slightly smaller bound. The larger one surely holds.
    epsilon = None if joint.epsilon is None else max(joint.epsilon, privacy["epsilon"])
    return {
        **privacy,
        "public": [*privacy.get("public", ()), *_PUBLIC],
        "over_releases": {"epsilon": epsilon, "delta": joint.delta, "reason": joint.reason, "meaning": _MEANING},
    }


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


def _check_fields(privacy: Mapping[str, Any]) -> None:
    missing = [field for field in ("enabled", "epsilon", "events") if field not in privacy]
    if missing:
        raise UserError(f"the metrics' privacy record lacks {missing[0]}: train this stage again")
