"""The privacy receipt of a package: what it covers, and which fields it publishes."""

from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.privacy.ledger.receipt_schema import RECEIPT_FIELDS
from sealed_experts.privacy.ledger.releases import ReleaseLog

_EVENT_FIELDS = ("stage", "noise_multiplier", "sample_rate", "steps")
_PUBLIC = (
    "over_releases: it is treated as public which versions of all experts were trained on the same units",
    "names of private data: it is treated as public whether two packages of one owner were made from the same records",
)
_MEANING = (
    "the joint ε of all versions of all experts that the publisher had sealed when this version was first sealed, with"
    " this version; it is the largest ε of any unit in this version's training data; versions sealed later are not"
    " counted"
)


def covering(receipt: Mapping[str, Any], *, shipped: Mapping[str, Any], selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the receipt of a package. It covers all stages, even if the package holds an earlier one.

    In that case the choice looked at the weights of all stages, so the package depends on everything that they
    released. The receipt says so in `covers`.

    Args:
        receipt: the `privacy` mapping in the last stage's metrics.
        shipped: the `privacy` mapping in the metrics of the stage that the package holds.
        selection: the content of selection.json.

    Raises:
        UserError: the receipt lacks an event of the shipped stage, or claims an ε although that stage has none; or one
            of the mappings is not a receipt.
    """
    for privacy in (receipt, shipped):
        _check_fields(privacy)
    stage, chain = selection["stage"], selection["candidates"]
    lacks = [event for event in shipped["events"] if event not in receipt["events"]]
    if lacks or (shipped["epsilon"] is None and receipt["epsilon"] is not None):
        raise UserError(
            f"the privacy receipt of stage {chain[-1]} does not cover stage {stage}, which is to be sealed: they are"
            " from different runs; delete the expert's selection.json and run again"
        )
    if stage == chain[-1]:
        return dict(receipt)
    covers = (
        f"all stages: {', '.join(chain)}; the package holds {stage}, which was chosen by looking at the weights of all;"
        f" noise, batch and steps that are stated for one stage are those of {chain[-1]}"
    )
    return {**receipt, "covers": covers}


def released(
    privacy: Mapping[str, Any], *, expert: str, units: Iterable[str] | None, log: ReleaseLog
) -> dict[str, Any]:
    """Record a version in the release log and return its receipt with `over_releases`.

    `over_releases` is the joint privacy, for this version's units, of all versions of all experts sealed so far, with
    this one: a reader may have all of them. Versions from other units do not count. Versions that were sealed later do
    not count either, so sealing a version again gives the same receipt.

    Args:
        privacy: the receipt of the package.
        units: ids of the units in its training data; None if unknown.

    Raises:
        UserError: the mapping is not a receipt, or the log is damaged.
    """
    number = log.record(expert=expert, receipt=privacy, units=units)
    if privacy["epsilon"] is None:
        return {**privacy, "over_releases": {"epsilon": None, "reason": privacy["reason"], "meaning": _MEANING}}
    # If the units are unknown, every version counts.
    (lineage,) = log.lineages([privacy])
    joint = log.epsilon_over_releases(delta=privacy["delta"], among=lineage, until=number)
    # With more events the accountant may use another grid and give a slightly smaller bound. The larger one is safe.
    epsilon = None if joint.epsilon is None else max(joint.epsilon, privacy["epsilon"])
    return {
        **privacy,
        "public": [*privacy.get("public", ()), *_PUBLIC],
        "over_releases": {"epsilon": epsilon, "delta": joint.delta, "reason": joint.reason, "meaning": _MEANING},
    }


def receipt_bytes(privacy: Mapping[str, Any]) -> bytes:
    """Return privacy_receipt.json for a receipt, with allowed fields only.

    The noise key's id is published only in release mode, where the key is random. In reproducible mode the key follows
    from the data's digest, so anyone could test a guess at the data with its id.

    Raises:
        UserError: the mapping is not a receipt.
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
