"""Assemble moe_config.json from verified packages. Only one package is in memory at a time, and torch is not needed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.moe.compatibility import active_together, check_package
from sealed_experts.moe.configuration import FORMAT, BaseReference, parse_mixture
from sealed_experts.moe.job import MoeJob, MoeMember
from sealed_experts.moe.joint_privacy import MemberReceipt, check_limit, joint_privacy, receipt_of
from sealed_experts.packages import opening
from sealed_experts.packages.constraints import check_together
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.own_identity import own_identity
from sealed_experts.packages.report import VerifiedPackage
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.privacy.ledger.releases import ReleaseLog
from sealed_experts.settings.fields import plain


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Paths of the inputs.

    Attributes:
        packages: folder that contains {expert}.tgsp, or {expert}.expert instead.
        experts: folder that contains {expert}/selection.json.
        base: path of base.json.
    """

    packages: Path
    experts: Path
    base: Path

    def package(self, expert: str) -> Path:
        """Return the path of an expert's package."""
        path = self.packages / f"{expert}.tgsp"
        archive = path.with_suffix(".expert")
        return archive if archive.is_file() and not path.exists() else path


def assemble(job: MoeJob, *, sources: Sources, output: Path, trust: TrustStore, log: ReleaseLog) -> None:
    """Verify every package, and write moe_config.json to `output`.

    Raises:
        PackageError: a package fails verification.
        UserError: a package has another expert, stage or base than the configuration, or a rank above
            `gatelink_config.max_lora_rank`; the packages' constraints are not met; a file is missing; or the joint ε is
            above `max_epsilon`.
    """
    base = _base_reference(sources.base)
    experts: dict[str, Any] = {}
    receipts: list[MemberReceipt] = []
    manifests: list[dict[str, Any]] = []
    identity = own_identity()
    for member in job.experts:
        package = opening.open_any(sources.package(member.name), trust=trust, identity=identity)
        check_package(
            package,
            path=sources.package(member.name),
            name=member.name,
            base=base,
            max_rank=job.gatelink_config.max_lora_rank,
        )
        experts[member.name] = _entry(member, package, sources=sources, folder=output.parent)
        receipts.append(receipt_of(package))
        manifests.append(package.manifest)
    check_together(manifests, active=active_together(member.routing.always_active for member in job.experts))
    privacy = joint_privacy(receipts, log=log)
    if job.max_epsilon is not None:
        check_limit(privacy, limit=job.max_epsilon)
    content = {
        "format": FORMAT,
        "model": base.name,
        "base": {
            "name": base.name,
            "revision": base.revision,
            "digest": base.digest,
            "path": _relative(base.folder, output.parent),
        },
        "experts": experts,
        "routing_order": [member.name for member in job.experts],
        "he_config": plain(job.he_config),
        "gatelink_config": plain(job.gatelink_config),
        "privacy": privacy,
    }
    parse_mixture(content, path=output).router()  # never write a file that a reader would refuse
    write_json(output, content)


def _entry(member: MoeMember, package: VerifiedPackage, *, sources: Sources, folder: Path) -> dict[str, Any]:
    path = sources.experts / member.name / "selection.json"
    selection = read_json(path)
    checkpoint = _checked_checkpoint(selection, package, member.name, path)
    return {
        "tgsp_path": _relative(sources.package(member.name), folder),
        "checkpoint_path": _relative(checkpoint, folder),
        "gate_type": member.routing.gate,
        "gate_keywords": list(member.routing.keywords),
        "always_active": member.routing.always_active,
        "match": member.routing.match,
        **_beyond_defaults(member.routing),
        "package_digest": package.digest,
        "publisher": package.publisher,
        "stage": selection["stage"],
        "stage_reason": selection["reason"],
    }


def _beyond_defaults(routing: RoutingSettings) -> dict[str, Any]:
    """Return the keys that are written only if they differ from the default: not every reader knows them."""
    found = {"gate_exclude": list(routing.exclude), "priority": routing.priority}
    return {key: value for key, value in found.items() if value}


def _checked_checkpoint(selection: Any, package: VerifiedPackage, expert: str, path: Path) -> Path:
    """Return the path of the chosen adapter, after checking that its package holds the same stage."""
    if not isinstance(selection, Mapping) or not {"expert", "stage", "adapter", "reason"} <= selection.keys():
        raise UserError(f"{path} must hold expert, stage, adapter and reason: delete it and run again")
    sealed = package.manifest["training"]["selected_stage"]
    if (selection["expert"], selection["stage"]) != (expert, sealed):
        raise UserError(
            f"{path} selects stage {selection['stage']} of {selection['expert']}, but the package holds stage {sealed} "
            f"of {expert}: delete the package and run again"
        )
    checkpoint = Path(selection["adapter"])
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}, which {path} selects, does not exist: run the pipeline again to train it")
    return checkpoint


def _base_reference(path: Path) -> BaseReference:
    manifest = read_json(path)
    if not isinstance(manifest, Mapping) or not {"name", "revision", "digest"} <= manifest.keys():
        raise UserError(f"{path} must hold name, revision and digest: delete its folder and run again")
    return BaseReference(
        name=manifest["name"], revision=manifest["revision"], digest=manifest["digest"], folder=path.parent
    )


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
