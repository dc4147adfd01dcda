"""What a package says about itself, for people, and whether any of it is verified."""

import os
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import shown
from sealed_experts.sealing import opening
from sealed_experts.sealing.errors import PackageError, SignatureError
from sealed_experts.sealing.expert.container import ExpertReport
from sealed_experts.sealing.keys.policy import Policy
from sealed_experts.sealing.keys.trust import TrustStore
from sealed_experts.sealing.printable import printable
from sealed_experts.sealing.recipients.encryption import EncryptedError, Identity
from sealed_experts.sealing.tgsp.examination import ANY, PackageReport


@dataclass(frozen=True, kw_only=True)
class Description:
    """Lines to print, and 0 when all of the package is verified, else the exit code of what it is refused for."""

    lines: list[str]
    exit_code: int


def describe(
    path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy = ANY, identity: Identity | None = None
) -> Description:
    """Describe a package.

    The manifest of an untrusted publisher is shown when the file is whole by the key it carries itself, marked as
    not verified: one reads it to decide about trust. Of an altered file nothing is shown. Of a file that is encrypted
    for others, the manifest is shown when its signature is verified, and the exit code is not 0, for the rest is not.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        report, note, exit_code = _report(path, trust=trust, policy=policy, identity=identity)
    except PackageError as error:
        return Description(lines=_unverified(path, error), exit_code=error.exit_code)
    signers = " and ".join(report.signatures)
    head = [f"VERIFIED{note}: signed by {printable(report.publisher_name)} ({report.publisher}) with {signers}"]
    if report.digest is not None:
        head.append(f"digest: {report.digest}")
    return Description(lines=[*head, *_described(report)], exit_code=exit_code)


def _report(
    path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy, identity: Identity | None
) -> tuple[PackageReport, str, int]:
    """Return what is known, what is to be said of that, and the exit code."""
    try:
        return opening.verify_any(path, trust=trust, policy=policy, identity=identity), "", 0
    except EncryptedError as error:
        report = opening.verify_manifest(path, trust=trust, policy=policy)
        readers = ", ".join(report.recipients)
        return report, f" IN ITS MANIFEST ONLY, for the content is encrypted for {readers}", error.exit_code


def _unverified(path: str | os.PathLike[str], error: PackageError) -> list[str]:
    """Of a stranger's package nothing is read but the manifest: who decompresses or parses the rest trusts them."""
    head = [f"NOT VERIFIED: {shown(error)}"]
    if not isinstance(error, SignatureError):
        return head
    try:
        report = opening.verify_manifest(path, trust=opening.own_publisher(path))
    except PackageError:
        return head
    return [
        *head,
        f"The file is whole by the key that it carries itself ({report.publisher}). Anyone can make such a file: nobody"
        " vouches for what follows.",
        *_described(report),
    ]


def _described(report: PackageReport) -> list[str]:
    """Return the manifest as lines `field: value`, nested fields joined by dots."""
    fields = {key: value for key, value in report.manifest.items() if key != "members"}
    if isinstance(report, ExpertReport):
        kept = {key: value for key, value in report.integrity.items() if key not in ("files", "signature")}
        fields["integrity"] = kept
    members = [
        f"member: {entry['path']} ({entry['size']} bytes, {entry['sha256']})" for entry in report.manifest["members"]
    ]
    return [*_lines(fields, ""), *members]


def _lines(value: Any, place: str) -> list[str]:
    if isinstance(value, dict):
        return [line for key in sorted(value) for line in _lines(value[key], f"{place}.{key}" if place else key)]
    if isinstance(value, list):
        # Items that are mappings themselves stand one a line.
        if any(isinstance(item, dict) for item in value):
            return [line for index, item in enumerate(value) for line in _lines(item, f"{place}[{index}]")]
        return [f"{place}: {', '.join(_shown(item) for item in value)}"]
    return [f"{place}: {_shown(value)}"]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return printable(str(value))
