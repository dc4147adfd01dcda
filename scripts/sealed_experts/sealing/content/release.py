"""What sealing a version means for privacy over time: it enters the owner's release log, and its receipt says so."""

from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.privacy.ledger.releases import ReleaseLog

_PUBLIC = (
    "over_releases: which versions were trained on common units is treated as public",
    "names of private data: whether two packages of one owner were made from the same records is treated as public",
)


def released(
    privacy: Mapping[str, Any], *, expert: str, units: Iterable[str] | None, log: ReleaseLog
) -> dict[str, Any]:
    """Record a version in the release log and return its receipt with `over_releases`.

    That is the joint privacy, for this version's units, of every version of this expert sealed so far, this one
    included: whoever holds an earlier version too has seen them all. Versions from other units do not count.

    Args:
        privacy: the receipt that the package carries.
        units: ids of the units in its training data; None if unknown.

    Raises:
        UserError: the mapping is no receipt, or the log is damaged.
    """
    log.record(expert=expert, receipt=privacy, units=units)
    if privacy["epsilon"] is None:
        return {**privacy, "over_releases": {"epsilon": None, "reason": privacy["reason"]}}
    # Unknown units may be anyone's: then every version counts.
    (lineage,) = log.lineages([privacy], expert=expert)
    joint = log.epsilon_over_releases(delta=privacy["delta"], expert=expert, among=lineage)
    return {
        **privacy,
        "public": [*privacy.get("public", ()), *_PUBLIC],
        "over_releases": {"epsilon": joint.epsilon, "delta": joint.delta, "reason": joint.reason},
    }
