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
        units: ids of its units, in the same scheme for all members. None: unknown, so they count as shared with every
            member. An empty set: it learned only from public data.
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
    """(ε, δ) for every unit of every member. If no ε can be claimed, it is None and `reason` says why.

    `members` are the members that share the units with the largest ε.
    """

    epsilon: float | None
    delta: float
    reason: str | None = None
    members: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the statement as plain data."""
        return {**dataclasses.asdict(self), "members": list(self.members)}


def mixture_privacy(members: Iterable[Member], *, delta: float, among: frozenset[str] | None = None) -> JointPrivacy:
    """Return the joint privacy of publishing all `members`: the maximum of ε over all units.

    Each unit is in the data of some members. Its ε is the composition of all events of these members. Only the largest
    such groups matter, because more events never give a smaller ε. The result holds at `delta`, which may differ from
    the members' own δ.

    Args:
        among: count only these units, and members whose units are unknown.

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
    groups = [[concerned[index] for index in sorted(group)] for group in largest_groups(concerned, among)]
    for group in sorted(groups, key=lambda group: -upper_bound(_events(group), delta=delta)):
        if worst and upper_bound(_events(group), delta=delta) <= largest:
            break  # the groups are sorted by this bound, so no later one is worse
        joint = epsilon(_events(group), delta=delta)
        if joint > largest or not worst:
            largest, worst = joint, tuple(member.name for member in group)
    return JointPrivacy(epsilon=largest, delta=delta, members=worst)


def _concerned(member: Member, among: frozenset[str] | None) -> bool:
    if member.units is None:
        return True
    return bool(member.units) if among is None else not member.units.isdisjoint(among)


def largest_groups(members: Sequence[Member], among: frozenset[str] | None) -> list[frozenset[int]]:
    """Return the sets of members (as indices) that share a unit, without those that are part of a larger one."""
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
