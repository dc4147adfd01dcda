"""What the whole mixture promises: the joint ε of all its experts, from their verified receipts.

Which records two experts have in common is read from the training data, on the trainer's side. No more than the
resulting ε is written: neither ids of units nor how many there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.data.records import read_records
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.privacy.ledger.mixture import JointPrivacy, Member, mixture_privacy
from sealed_experts.privacy.ledger.releases import ReleaseLog
from sealed_experts.sealing.package import VerifiedPackage
from sealed_experts.sealing.receipt import RECEIPT

_MEANING = (
    "the largest ε, over the units of all training data, of everything that all stages of all these experts released "
    "about the unit: it holds against whoever has all the packages"
)
_MEANING_OVER_RELEASES = "the same over every version that was ever sealed from units of these experts"
_REMEDY = (
    "lower privacy.target_epsilon of experts that share records (they compose), give them records of their own, or"
    " raise the limit"
)
_NO_REMEDY = "what was sealed cannot be taken back; train on other records, or raise the limit"
_DELTA_WITHOUT_CLAIM = 1e-5


@dataclass(frozen=True, kw_only=True)
class MemberReceipt:
    """What one expert's package promises, and where the records are that it learned from."""

    name: str
    receipt: dict[str, Any]
    train: Path


def receipt_of(package: VerifiedPackage, *, train: Path) -> MemberReceipt:
    """Take the privacy receipt out of a verified package."""
    return MemberReceipt(name=package.manifest["name"], receipt=strict_json(package.members[RECEIPT]), train=train)


def joint_privacy(receipts: Sequence[MemberReceipt], *, log: ReleaseLog) -> dict[str, Any]:
    """Return the mixture's own receipt as plain data.

    It is stated at the smallest δ of the members. An `epsilon` is null, with a `reason`, where none can be claimed.

    Raises:
        UserError: training data are missing, or a receipt or a file of the log is not what it must be.
    """
    claimed = [item.receipt["delta"] for item in receipts if item.receipt["epsilon"] is not None]
    delta = min(claimed, default=_DELTA_WITHOUT_CLAIM)
    units = {path: _units(path) for path in {item.train for item in receipts}}
    members = [Member.from_receipt(item.receipt, name=item.name, units=units[item.train]) for item in receipts]
    return {
        **_statement(mixture_privacy(members, delta=delta), _MEANING),
        "experts": {item.name: item.receipt["epsilon"] for item in receipts},
        "over_releases": _statement(_over_releases(receipts, delta=delta, log=log), _MEANING_OVER_RELEASES),
    }


def check_limit(privacy: Mapping[str, Any], *, limit: float) -> None:
    """Check the mixture's own receipt against `moe.max_epsilon`: both of its ε must be stated, and be within it.

    The one over all releases is the larger one wherever anything else was ever sealed from units of these experts, and
    whoever kept that has it too; so a limit on the present packages alone would promise nothing.

    Raises:
        UserError: an ε is above the limit, or none is stated.
    """
    for what, statement, remedy in (
        ("the joint ε of these experts", privacy, _REMEDY),
        ("the joint ε over all versions ever sealed from units of these experts", privacy["over_releases"], _NO_REMEDY),
    ):
        if statement["epsilon"] is None:
            raise UserError(
                f"{what} cannot be stated, but moe.max_epsilon is {limit:g}: {statement['reason']}; mend that, leave"
                " such an expert out, or remove moe.max_epsilon"
            )
        if statement["epsilon"] > limit:
            raise UserError(
                f"{what} is {statement['epsilon']:.6g} at δ = {statement['delta']:g}, above moe.max_epsilon, which is"
                f" {limit:g}: {remedy}"
            )


def _over_releases(receipts: Sequence[MemberReceipt], *, delta: float, log: ReleaseLog) -> JointPrivacy:
    concerned: set[str] = set()
    for item, lineage in zip(receipts, log.lineages([item.receipt for item in receipts]), strict=True):
        if lineage is None:
            reason = f"the release log of this machine does not tell which records {item.name} learned from"
            return JointPrivacy(epsilon=None, delta=delta, reason=reason)
        concerned |= lineage
    return log.epsilon_over_releases(delta=delta, among=frozenset(concerned))


def _statement(joint: JointPrivacy, meaning: str) -> dict[str, Any]:
    # Not `joint.members`: who shares records with whom is a function of the records.
    return {"epsilon": joint.epsilon, "delta": joint.delta, "reason": joint.reason, "meaning": meaning}


def _units(train: Path) -> frozenset[str]:
    return frozenset(record.unit for record in read_records(train))
