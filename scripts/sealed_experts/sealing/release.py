"""What sealing a version means for privacy over time: it enters the owner's release log, and its receipt says so."""

from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.privacy.ledger.releases import ReleaseLog


def released(
    privacy: Mapping[str, Any], *, expert: str, units: Iterable[str] | None, log: ReleaseLog
) -> dict[str, Any]:
    """Record a version in the release log and return its receipt with `over_releases`.

    That is the joint privacy of every version of this expert sealed so far from the same units, this one included:
    whoever holds an earlier version too has seen them all.

    Args:
        privacy: the `privacy` mapping of the selected stage's metrics.
        units: ids of the units in its training data; None if unknown.

    Raises:
        UserError: the mapping is no receipt, or the log is damaged.
    """
    log.record(expert=expert, receipt=privacy, units=units)
    if privacy["epsilon"] is None:
        return {**privacy, "over_releases": {"epsilon": None, "reason": privacy["reason"]}}
    joint = log.epsilon_over_releases(delta=privacy["delta"], expert=expert)
    return {**privacy, "over_releases": {"epsilon": joint.epsilon, "delta": joint.delta, "reason": joint.reason}}
