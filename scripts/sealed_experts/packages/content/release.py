"""What sealing a version means for privacy over time: it enters the owner's release log, and its receipt says so."""

from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.privacy.ledger.releases import ReleaseLog

_PUBLIC = (
    "over_releases: which versions, of whatever experts, were trained on common units is treated as public",
    "names of private data: whether two packages of one owner were made from the same records is treated as public",
)
_MEANING = (
    "the largest ε, over the units of this version's training data, of everything that the publisher had sealed from"
    " the unit when this version was first sealed, itself included and whatever the experts' names; what is sealed"
    " later comes on top"
)


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
