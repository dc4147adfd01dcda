"""ε of several adapters together, for a unit that may be in the training data of more than one of them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sealed_experts.data.schemes import MIXED
from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import epsilon, upper_bound
from sealed_experts.privacy.ledger.events import GaussianEvent, events_from_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One adapter of a mixture, or one past release.

    Attributes:
        name: its name in messages.
        events: everything it released about its units.
        units: ids of its units, in one scheme for all members. None: unknown, so they count as common with every
            member. An empty set: it learned from public data alone.
        unit: the kind of unit (`record`, or the field that names it). Ids of different kinds cannot be compared.
        reason: why it claims no privacy; None if it claims some.
    """

    name: str
    events: tuple[GaussianEvent, ...]
    units: frozenset[str] | None
    unit: str = "record"
    reason: str | None = None

    @classmethod
    def from_receipt(cls, receipt: Mapping[str, Any], *, name: str, units: frozenset[str] | None) -> "Member":
        """Return the adapter that `receipt` describes.

        Raises:
            UserError: the receipt holds no events, or states neither an ε nor a reason why there is none.
        """
        reason = receipt.get("reason") if receipt.get("epsilon") is None else None
        if receipt.get("epsilon") is None and not (isinstance(reason, str) and reason):
            raise UserError(f"the privacy receipt of {name} states neither an ε nor a reason: train and seal it again")
        return cls(
            name=name,
            events=events_from_json(receipt.get("events")),
            units=units,
            unit=receipt.get("unit") or "unknown",
            reason=reason,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointPrivacy:
    """(ε, δ) for every unit of every member. If no ε can be claimed, it is null and `reason` says why.

    `members` are the members whose common units have the largest ε.
    """

    epsilon: float | None
    delta: float
    reason: str | None = None
    members: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the statement as plain data."""
        return {**dataclasses.asdict(self), "members": list(self.members)}


def mixture_privacy(members: Iterable[Member], *, delta: float, among: frozenset[str] | None = None) -> JointPrivacy:
    """Return the joint privacy of publishing all `members`: the maximum over units of what their releases compose to.

    Each unit is in the data of some members, and its ε is the composition of all their events. Only the largest such
    groups matter, since more events never mean a smaller ε. The statement holds at `delta`, which may differ from the
    members' own δ.

    Args:
        among: look only at these units (and at members whose units are unknown).

    Raises:
        UserError: two members state different events for one noise key.
        ValueError: `delta` is not inside (0, 1).
    """
    concerned = [member for member in members if _concerned(member, among)]
    for member in concerned:
        if member.reason is not None:
            return JointPrivacy(epsilon=None, delta=delta, reason=f"{member.name} claims no privacy: {member.reason}")
    kinds = sorted({member.unit for member in concerned})
    if len(kinds) > 1 or (MIXED in kinds and len(concerned) > 1):
        reason = f"the members protect different kinds of units ({', '.join(kinds)}), so their ε cannot be composed"
        return JointPrivacy(epsilon=None, delta=delta, reason=reason)
    largest = 0.0
    worst: tuple[str, ...] = ()
    groups = [[concerned[index] for index in sorted(group)] for group in _largest_groups(concerned, among)]
    for group in sorted(groups, key=lambda group: -upper_bound(_events(group), delta=delta)):
        if worst and upper_bound(_events(group), delta=delta) <= largest:
            break  # no group after it can be worse: they are sorted by this bound
        joint = epsilon(_events(group), delta=delta)
        if joint > largest or not worst:
            largest, worst = joint, tuple(member.name for member in group)
    return JointPrivacy(epsilon=largest, delta=delta, members=worst)


def _concerned(member: Member, among: frozenset[str] | None) -> bool:
    if member.units is None:
        return True
    return bool(member.units) if among is None else not member.units.isdisjoint(among)


def _largest_groups(members: Sequence[Member], among: frozenset[str] | None) -> list[frozenset[int]]:
    """Return the sets of members, as indices, that share a unit and are not part of a larger such set."""
    unknown = frozenset(index for index, member in enumerate(members) if member.units is None)
    holders: dict[str, set[int]] = {}
    for index, member in enumerate(members):
        for unit in member.units or ():
            if among is None or unit in among:
                holders.setdefault(unit, set()).add(index)
    patterns = {unknown | frozenset(group) for group in holders.values()} or ({unknown} if unknown else set())
    largest: list[frozenset[int]] = []
    for pattern in sorted(patterns, key=lambda pattern: (-len(pattern), sorted(pattern))):
        if not any(pattern < other for other in largest):
            largest.append(pattern)
    return largest


def _events(group: Sequence[Member]) -> list[GaussianEvent]:
    return [event for member in group for event in member.events]
