"""The joint ε of all experts of a mixture, from their verified receipts.

The release log of the machine that sealed the experts finds, by their noise keys, which records two experts share. A
package that was sealed elsewhere counts as sharing all records. Only the resulting ε is written, not the units' ids or
their number. The ε depends on which experts share records; this fact is declared public.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.packages.content.receipt import RECEIPT
from sealed_experts.packages.report import VerifiedPackage
from sealed_experts.privacy.ledger.mixture import JointPrivacy, Member, mixture_privacy
from sealed_experts.privacy.ledger.releases import ReleaseLog

_MEANING = (
    "the joint ε of everything that all stages of all these experts released about a unit, and the largest over the "
    "units of all training data: it holds against anyone who has all the packages"
)
_MEANING_OVER_RELEASES = "the same for every version that was ever sealed from units of these experts"
_PUBLIC = ["it is treated as public which experts and versions were trained on the same units: ε depends on it"]
_REMEDY = (
    "lower privacy.target_epsilon of experts that share records (their ε compose), give them separate records, or"
    " raise the limit"
)
_NO_REMEDY = "sealed packages cannot be taken back; train on other records, or raise the limit"
_DELTA_WITHOUT_CLAIM = 1e-5


@dataclass(frozen=True, kw_only=True)
class MemberReceipt:
    """The privacy receipt of one expert's package."""

    name: str
    receipt: dict[str, Any]


def receipt_of(package: VerifiedPackage) -> MemberReceipt:
    """Return the privacy receipt of a verified package."""
    return MemberReceipt(name=package.manifest["name"], receipt=strict_json(package.members[RECEIPT]))


def joint_privacy(receipts: Sequence[MemberReceipt], *, log: ReleaseLog) -> dict[str, Any]:
    """Return the mixture's own receipt as plain data.

    Its δ is the smallest δ of the members. If no ε can be claimed, `epsilon` is null and `reason` says why.

    Args:
        log: finds, by the noise keys, the units of experts that were sealed here. The units of other experts are
            unknown and count as shared with all.

    Raises:
        UserError: a receipt or a file of the log is invalid.
    """
    claimed = [item.receipt["delta"] for item in receipts if item.receipt["epsilon"] is not None]
    delta = min(claimed, default=_DELTA_WITHOUT_CLAIM)
    lineages = log.lineages([item.receipt for item in receipts])
    members = [
        Member.from_receipt(item.receipt, name=item.name, units=lineage)
        for item, lineage in zip(receipts, lineages, strict=True)
    ]
    return {
        **_statement(mixture_privacy(members, delta=delta), _MEANING),
        "experts": {item.name: {field: item.receipt[field] for field in ("epsilon", "delta")} for item in receipts},
        "over_releases": _statement(_over_releases(members, delta=delta, log=log), _MEANING_OVER_RELEASES),
    }


def check_limit(privacy: Mapping[str, Any], *, limit: float) -> None:
    """Compare both ε in the mixture's receipt with `moe.max_epsilon`.

    The ε over all releases is larger if other packages were ever sealed from units of these experts. Somebody may have
    kept those packages, so a limit on the present packages alone would guarantee nothing.

    Raises:
        UserError: an ε is above the limit, or is not stated.
    """
    for what, statement, remedy in (
        ("the joint ε of these experts", privacy, _REMEDY),
        ("the joint ε over all versions ever sealed from units of these experts", privacy["over_releases"], _NO_REMEDY),
    ):
        if statement["epsilon"] is None:
            raise UserError(
                f"{what} cannot be stated, but moe.max_epsilon is {limit:g}: {statement['reason']}; correct this, leave"
                " such an expert out, or remove moe.max_epsilon"
            )
        if statement["epsilon"] > limit:
            raise UserError(
                f"{what} is {statement['epsilon']:.6g} at δ = {statement['delta']:g}, above moe.max_epsilon, which is"
                f" {limit:g}: {remedy}"
            )


def _over_releases(members: Sequence[Member], *, delta: float, log: ReleaseLog) -> JointPrivacy:
    concerned: set[str] = set()
    for member in members:
        if member.units is None:
            reason = f"the release log of this machine does not know which records {member.name} learned from"
            return JointPrivacy(epsilon=None, delta=delta, reason=reason)
        concerned |= member.units
    return log.epsilon_over_releases(delta=delta, among=frozenset(concerned))


def _statement(joint: JointPrivacy, meaning: str) -> dict[str, Any]:
    return {
        "epsilon": joint.epsilon,
        "delta": joint.delta,
        "reason": joint.reason,
        "meaning": meaning,
        "public": _PUBLIC,
    }
