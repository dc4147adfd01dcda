"""Seal, verify, open and unpack a `.tgsp` package, always with every check."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.files.atomic import atomic_writer, write_bytes
from sealed_experts.packages.content.manifest import manifest_bytes
from sealed_experts.packages.content.new_folder import new_folder
from sealed_experts.packages.errors import named
from sealed_experts.packages.keys.policy import DEFAULT, Policy
from sealed_experts.packages.keys.private_keys import PublisherKey
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity, Recipient
from sealed_experts.packages.report import PackageReport, VerifiedPackage
from sealed_experts.packages.source import BytesOrFile, Memory, Source, open_source
from sealed_experts.packages.tgsp.container import read_frame
from sealed_experts.packages.tgsp.examination import check_signed, examine, report
from sealed_experts.packages.tgsp.writer import Plan, plan_package, write_plan

MANIFEST = "manifest.json"  # its name in a folder


def open_package(
    path: str | os.PathLike[str],
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> VerifiedPackage:
    """Read a `.tgsp` file once, into memory, verify it, and return its content.

    The order is: framing, signatures, manifest, set of members, sizes, digests, receipt, linter.

    Args:
        path: the file.
        trust: the publishers that may have signed it.
        policy: what is required besides a trusted publisher.
        identity: the private key of a recipient, for an encrypted package.

    Raises:
        UserError: the file cannot be read, or is encrypted for others.
        PackageError: a check failed. Its message names the file, what is wrong and what was expected.
    """
    with named(path), open_source(path) as source:
        read_frame(source)  # checks lengths and size before all of it is read
        data = source.read(0, source.size)
        source.check_unchanged()
        return open_bytes(data, trust=trust, policy=policy, identity=identity)


def open_bytes(
    data: bytes, *, trust: TrustStore, policy: Policy = DEFAULT, identity: Identity | None = None
) -> VerifiedPackage:
    """Verify a package that is already in memory.

    Raises:
        UserError, PackageError: as for `open_package`.
    """
    return VerifiedPackage(
        **vars(examine(Memory(data), trust=trust, policy=policy, identity=identity, digest=True, weights=True))
    )


def verify_package(
    path: str | os.PathLike[str],
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
    digest: bool = False,
) -> PackageReport:
    """Make all checks of `open_package`, in constant memory.

    The file is read twice through one descriptor: for its digest, and after the check of the signature for its content.
    If it changes in between, it is refused. To load a package, call `open_package`: the path may name another file
    later.

    Args:
        digest: whether the report states the SHA-256 of the whole file, which takes a second thread.

    Raises:
        UserError, PackageError: as for `open_package`.
    """
    with named(path), open_source(path) as source:
        return examine(source, trust=trust, policy=policy, identity=identity, digest=digest)


def verify_manifest(path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy = DEFAULT) -> PackageReport:
    """Check signatures and manifest, but not the content, which may be encrypted for others.

    Raises:
        UserError, PackageError: as for `open_package`.
    """
    with named(path), open_source(path) as source:
        signed = check_signed(source, trust=trust, policy=policy, digest=False)
        source.check_unchanged()
        return report(source, signed, members={})


def seal_package(
    path: str | os.PathLike[str],
    *,
    manifest: Mapping[str, Any],
    members: Mapping[str, BytesOrFile],
    key: PublisherKey,
    signatures: Sequence[str] | None = None,
    recipients: Sequence[Recipient] = (),
    compression: str = "none",
) -> str:
    """Write a package and return its SHA-256.

    The file appears at `path` only after it was verified in the same way as a reader does. The same content and key
    give the same bytes, except for ML-DSA's signature and for encryption, which are randomised.

    Args:
        path: the file to write.
        manifest: the manifest without `payload` and `members`, which follow from the members.
        members: content of each member, by name: bytes, or the file that holds them.
        key: the publisher's key.
        signatures: the algorithms to sign with; by default all that the key has.
        recipients: who can decrypt the package; by default it is not encrypted.
        compression: `none` or `zstd`.

    Raises:
        PackageError: a package may not hold this content.
        UserError: a member cannot be read, or the file cannot be written.
    """
    plan = plan_package(manifest, members, key, signatures, recipients, compression)
    digests: list[str | None] = []

    def check(written: Path) -> None:
        with open_source(written) as source:
            digests.append(_verified(source, plan).digest)

    with atomic_writer(path, check=check) as stream:
        write_plan(stream, plan)
    (digest,) = digests
    assert digest is not None, "it was asked for"
    return digest


def _verified(source: Source, plan: Plan) -> PackageReport:
    return examine(
        source,
        trust=TrustStore([plan.key.public]),
        policy=Policy(signatures=plan.signatures),
        content_key=plan.content_key,
        digest=True,
    )


def unpack_package(
    path: str | os.PathLike[str],
    folder: Path,
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> PackageReport:
    """Verify a file, and write its manifest and members into a new folder, in constant memory.

    The members are written and hashed during the second reading. The folder appears only after all checks have passed.

    Raises:
        UserError: the folder exists or cannot be written, or as for `open_package`.
        PackageError: as for `open_package`.
    """
    with named(path), open_source(path) as source, new_folder(folder) as temporary:
        found = examine(source, trust=trust, policy=policy, identity=identity, unpack_to=temporary)
        write_bytes(temporary / MANIFEST, manifest_bytes(found.manifest))
        return found
