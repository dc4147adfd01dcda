"""The release log: everything that was ever sealed, so that ε over time can be stated.

The log is in the owner's home folder, outside the results, so deleting the results does not delete it. It has one file
for each expert and noise key. Units are named only by HMAC: nobody without the owner's key can test whether a record
was used. Releases have numbers and no dates, so sealing a version again gives the same receipt.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.canonical import canonical_json, read_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.files.home import private_folder
from sealed_experts.files.locks import folder_lock
from sealed_experts.privacy.ledger.events import GaussianEvent, distinct_events, events_from_json
from sealed_experts.privacy.ledger.mixture import JointPrivacy, Member, mixture_privacy
from sealed_experts.privacy.ledger.owner_names import owner_key, private_name

_FORMAT = "sealed-experts/release/v1"
_FIELDS = {"format", "expert", "event", "unit", "units", "reason", "entered"}
_EXPERT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ReleaseLog:
    """The log of one owner, in `home`/releases."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "releases"

    def record(self, *, expert: str, receipt: Mapping[str, Any], units: Iterable[str] | None) -> int:
        """Record a version in the log before it is sealed, and return its number.

        Recording the same version again changes nothing and returns the same number. A longer run with the same key
        replaces the shorter one and gets a new number. Several processes may call this at once.

        Args:
            receipt: the version's privacy receipt.
            units: ids of the units in its training data. None: unknown, so they count as shared with every version.

        Raises:
            UserError: the receipt, the expert's name or a file of the log is invalid.
        """
        version = Member.from_receipt(receipt, name=expert, units=None)
        if units is not None:
            version = dataclasses.replace(version, units=self._unit_names(version.unit, units))
        private_folder(self._folder, home=self._home)
        with folder_lock(self._folder):
            following = 1 + max((entry.last for entry in self._entries()), default=0)
            return max(self._merge(expert, event, version, following) for event in version.events or (None,))

    def releases(self, *, expert: str | None = None, until: int | None = None) -> list[Member]:
        """Return the releases in the log, of one expert or of all, as members of a mixture.

        Args:
            until: only releases with this number or a lower one.
        """
        found = [entry.member(until) for entry in self._entries(expert)]
        return [member for member in found if member is not None]

    def epsilon_over_releases(
        self,
        *,
        delta: float,
        expert: str | None = None,
        among: frozenset[str] | None = None,
        until: int | None = None,
    ) -> JointPrivacy:
        """Return the joint privacy of all releases in the log, of one expert or of all.

        Args:
            among: only these units, as `lineages` names them.
            until: only releases up to this number.
        """
        return mixture_privacy(self.releases(expert=expert, until=until), delta=delta, among=among)

    def lineages(
        self, receipts: Sequence[Mapping[str, Any]], *, expert: str | None = None
    ) -> list[frozenset[str] | None]:
        """Return, for each receipt, the names of the units that its adapter learned from. Its noise keys find them.

        None means that the log does not know them: the package was sealed elsewhere, or its receipt names no key.

        Args:
            expert: only this expert's releases.
        """
        by_key: dict[str, frozenset[str] | None] = {}
        for member in self.releases(expert=expert):
            for key in (event.key_id for event in member.events):
                if key is not None:
                    by_key[key] = member.units if key not in by_key else _both(by_key[key], member.units)
        return [_lineage(events_from_json(receipt.get("events")), by_key) for receipt in receipts]

    def _unit_names(self, kind: str, units: Iterable[str]) -> frozenset[str]:
        key = owner_key(self._home)
        # 128 bits are enough to distinguish units, and keep the log of a large dataset small.
        return frozenset(private_name(key, "unit", kind, unit)[:32] for unit in units)

    def _expert_folder(self, expert: str) -> Path:
        if not _EXPERT.fullmatch(expert):
            raise UserError(f"{expert!r} cannot name an expert in the release log: use letters, digits, '_', '.', '-'")
        return self._folder / expert

    def _entries(self, expert: str | None = None) -> list["_Entry"]:
        folders = [self._expert_folder(expert)] if expert is not None else sorted(self._folder.glob("*/"))
        return [_read(path) for folder in folders for path in sorted(folder.glob("*.json"))]

    def _merge(self, expert: str, event: GaussianEvent | None, version: Member, following: int) -> int:
        """Write one event of a version into its file, and return its number, which is `following` if it is new."""
        folder = private_folder(self._expert_folder(expert), home=self._home)
        path = folder / f"{sha256_bytes(_identity(event).encode())[:32]}.json"
        units, reason, steps = version.units, version.reason, event.steps if event else 0
        entered: tuple[tuple[int, int], ...] = ()
        if path.exists():
            known = _read(path)
            both = [*([known.event] if known.event else []), *([event] if event else [])]
            event = distinct_events(both)[0] if both else None
            units = _both(known.units, units)  # unknown stays unknown, even if a later version names its units
            reason = known.reason or reason
            entered = known.entered
        number = next((number for number, before in entered if before >= steps), None)
        if number is None:
            number, entered = following, (*entered, (following, steps))
        content = {
            "format": _FORMAT,
            "expert": expert,
            "event": event.to_json() if event else None,
            "unit": version.unit,
            "units": None if units is None else sorted(units),
            "reason": reason,
            "entered": entered,
        }
        write_bytes(path, canonical_json(content).encode() + b"\n", mode=0o600)
        return number


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """One file of the log. `entered` holds (number, steps) for each run of the key, each longer than the last."""

    expert: str
    event: GaussianEvent | None
    unit: str
    units: frozenset[str] | None
    reason: str | None
    entered: tuple[tuple[int, int], ...]

    @property
    def last(self) -> int:
        return self.entered[-1][0]

    def member(self, until: int | None) -> Member | None:
        """Return what was sealed up to this number; None if nothing was."""
        steps = [steps for number, steps in self.entered if until is None or number <= until]
        if not steps:
            return None
        event = dataclasses.replace(self.event, steps=steps[-1]) if self.event else None
        return Member(
            name=f"{self.expert} ({event.stage})" if event else self.expert,
            events=(event,) if event else (),
            units=self.units,
            unit=self.unit,
            reason=self.reason,
        )


def _identity(event: GaussianEvent | None) -> str:
    if event is None:
        return "unprotected"
    return f"key {event.key_id}" if event.key_id is not None else f"event {canonical_json(event.to_json())}"


def _both(first: frozenset[str] | None, second: frozenset[str] | None) -> frozenset[str] | None:
    return None if first is None or second is None else first | second


def _lineage(events: Sequence[GaussianEvent], by_key: Mapping[str, frozenset[str] | None]) -> frozenset[str] | None:
    found = [by_key.get(event.key_id) if event.key_id is not None else None for event in events]
    return functools.reduce(_both, found) if found else None


def _read(path: Path) -> _Entry:
    data = read_json(path)
    if not isinstance(data, dict) or set(data) != _FIELDS or data["format"] != _FORMAT:
        raise UserError(
            f"{path} is not an entry of the release log: restore it from a copy; without it, ε over time "
            "would be too small"
        )
    event = None if data["event"] is None else GaussianEvent.from_json(data["event"])
    return _Entry(
        expert=str(data["expert"]),
        event=event,
        unit=data["unit"],
        units=None if data["units"] is None else frozenset(data["units"]),
        reason=data["reason"],
        entered=tuple((number, steps) for number, steps in data["entered"]),
    )
