"""What `sealed-experts inspect` shows: what a package says about itself, and whether it is verified."""

import os
from dataclasses import dataclass, replace
from typing import Any

from sealed_experts.errors import shown
from sealed_experts.packages import opening
from sealed_experts.packages.content.manifest import canonical_object
from sealed_experts.packages.content.receipt import RECEIPT
from sealed_experts.packages.errors import EncryptedError, PackageError, SignatureError
from sealed_experts.packages.keys.policy import DEFAULT, Policy
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.report import PackageReport
from sealed_experts.text import printable


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a package says about itself, and how much of it is verified.

    Attributes:
        lines: the text to print.
        exit_code: 0 if the whole package is verified, otherwise the code of the refusal.
        manifest_verified: whether a trusted publisher signed the manifest.
        report: the facts about the package; None if nothing may be shown.
        receipt: the privacy receipt; None if it was not verified.
        refusal: why the package, or a part of it, is not verified; None if everything is.
    """

    lines: list[str]
    exit_code: int
    manifest_verified: bool = False
    report: PackageReport | None = None
    receipt: dict[str, Any] | None = None
    refusal: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return the same for --json: the complete manifest and receipt, and whether they are verified."""
        report = self.report
        return {
            "verified": self.exit_code == 0,
            "manifest_verified": self.manifest_verified,
            "refusal": self.refusal,
            "publisher": None if report is None else report.publisher,
            "publisher_name": None if report is None else report.publisher_name,
            "signatures": [] if report is None else list(report.signatures),
            "digest": None if report is None else report.digest,
            "manifest": None if report is None else report.manifest,
            "receipt": self.receipt,
        }


def describe(
    path: str | os.PathLike[str],
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> Description:
    """Describe a package.

    - Untrusted publisher: show the manifest, marked as not verified, if the key in the file signed it. Users read it to
      decide about trust.
    - Altered file: show nothing.
    - Package encrypted for others: show the manifest if its signature is verified. The exit code is not 0, because the
      rest is not verified.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        report, refusal = _report(path, trust=trust, policy=policy, identity=identity)
    except PackageError as error:
        return _unverified(path, error)
    readers = ", ".join(report.recipients)
    note = f" IN ITS MANIFEST ONLY, because the content is encrypted for {readers}" if refusal else ""
    signers = " and ".join(report.signatures)
    head = [f"VERIFIED{note}: signed by {printable(report.publisher_name)} ({report.publisher}) with {signers}"]
    if report.digest is not None:
        head.append(f"digest: {report.digest}")
    receipt = None if refusal else canonical_object(report.members[RECEIPT], RECEIPT)
    return Description(
        lines=[*head, *_described(report), *_lines({"receipt": receipt} if receipt else {}, "")],
        exit_code=refusal.exit_code if refusal else 0,
        manifest_verified=True,
        report=report,
        receipt=receipt,
        refusal=shown(refusal) if refusal else None,
    )


def _report(
    path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy, identity: Identity | None
) -> tuple[PackageReport, EncryptedError | None]:
    """Return the facts about a package, and, if its content is encrypted for others, that error."""
    try:
        return opening.verify_any(path, trust=trust, policy=policy, identity=identity), None
    except EncryptedError as error:
        return opening.verify_manifest(path, trust=trust, policy=policy), error


def _unverified(path: str | os.PathLike[str], error: PackageError) -> Description:
    """Describe a refused package. Only the manifest is read: only trusted files may be decompressed and parsed."""
    head = [f"NOT VERIFIED: {shown(error)}"]
    nothing = Description(lines=head, exit_code=error.exit_code, refusal=shown(error))
    if not isinstance(error, SignatureError):
        return nothing
    try:
        report = opening.verify_manifest(path, trust=opening.own_publisher(path))
    except PackageError:
        return nothing
    lines = [
        *head,
        f"The file is intact by the key that it contains itself ({report.publisher}). Anyone can make such a file:"
        " nobody you trust signed what follows.",
        *_described(report),
    ]
    return replace(nothing, lines=lines, report=report)


def _described(report: PackageReport) -> list[str]:
    """Return the manifest as lines `field: value`. The names of nested fields are joined by dots."""
    fields = {key: value for key, value in report.manifest.items() if key != "members"}
    if report.integrity is not None:
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
        # Items that are mappings get one line each.
        if any(isinstance(item, dict) for item in value):
            return [line for index, item in enumerate(value) for line in _lines(item, f"{place}[{index}]")]
        return [f"{place}: {', '.join(_shown(item) for item in value)}"]
    return [f"{place}: {_shown(value)}"]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return printable(str(value))
