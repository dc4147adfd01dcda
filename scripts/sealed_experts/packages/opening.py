"""Open, verify and unpack a package in either container. The first bytes show which one it is."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealed_experts.errors import UserError
from sealed_experts.files.regular_file import read_regular
from sealed_experts.packages.content.manifest_schema import MAX_MANIFEST
from sealed_experts.packages.errors import PackageError, named
from sealed_experts.packages.expert import container as expert_container
from sealed_experts.packages.keys.pem import read_public_keys
from sealed_experts.packages.keys.policy import DEFAULT, Policy
from sealed_experts.packages.keys.publisher import PublicKey, Publisher, check_usable
from sealed_experts.packages.keys.trust import TrustStore, load_trust
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.report import PackageReport, VerifiedPackage
from sealed_experts.packages.source import open_source
from sealed_experts.packages.tgsp import container
from sealed_experts.packages.tgsp import package as tgsp

if TYPE_CHECKING:
    pass

TGSP, EXPERT = "tgsp", "expert"
NOBODY = "nobody you trust"
LARGEST = max(
    expert_container.LARGEST,
    container.HEADER.size + MAX_MANIFEST + container.MAX_RECIPIENTS + container.MAX_PAYLOAD + container.MAX_SIGNATURES,
)


def container_of(path: str | os.PathLike[str]) -> str:
    """Return the container of a file, `tgsp` or `expert`, by its first bytes. Nothing is verified.

    Raises:
        UserError: the file cannot be read.
        PackageError: the file is neither of the two.
    """
    start = read_regular(path, what="the package", limit=len(container.MAGIC))
    if start == container.MAGIC:
        return TGSP
    if start.startswith(expert_container.MAGIC):
        return EXPERT
    raise PackageError(
        f"{os.fspath(path)}: this is not a package: its first bytes are {start.hex(' ') or 'none'}; a .tgsp has "
        f"{container.MAGIC.hex(' ')} and an .expert {expert_container.MAGIC.hex(' ')}"
    )


def open_any(
    path: str | os.PathLike[str],
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> VerifiedPackage:
    """Read a package of either container into memory, verify it, and return its content.

    Raises:
        UserError: the file cannot be read, or is encrypted for others.
        PackageError: a check failed. Its message names the file, what is wrong and what was expected.
    """
    if container_of(path) == EXPERT:
        return expert_container.open_expert(path, trust=trust, policy=policy)
    return tgsp.open_package(path, trust=trust, policy=policy, identity=identity)


def verify_any(
    path: str | os.PathLike[str],
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> PackageReport:
    """Verify a package of either container, in constant memory.

    Raises:
        UserError, PackageError: as for `open_any`.
    """
    if container_of(path) == EXPERT:
        return expert_container.verify_expert(path, trust=trust, policy=policy)
    return tgsp.verify_package(path, trust=trust, policy=policy, identity=identity, digest=True)


def verify_manifest(path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy = DEFAULT) -> PackageReport:
    """Check a package's signatures and manifest, but not its content.

    Raises:
        UserError, PackageError: as for `open_any`.
    """
    if container_of(path) == EXPERT:
        return expert_container.verify_expert_manifest(path, trust=trust, policy=policy)
    return tgsp.verify_manifest(path, trust=trust, policy=policy)


def unpack_any(
    path: str | os.PathLike[str],
    folder: Path,
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> PackageReport:
    """Verify a package of either container, and write its manifest and members into a new folder, in constant memory.

    Raises:
        UserError: the folder exists or cannot be written, or as for `open_any`.
        PackageError: as for `open_any`.
    """
    if container_of(path) == EXPERT:
        return expert_container.unpack_expert(path, folder, trust=trust, policy=policy)
    return tgsp.unpack_package(path, folder, trust=trust, policy=policy, identity=identity)


def own_publisher(path: str | os.PathLike[str]) -> TrustStore:
    """Return a trust store of the keys in the file itself. They prove nothing, and the publisher's name says so.

    Raises:
        UserError: the file or the user's trust store cannot be read.
        PackageError: the file is not a package.
        SignatureError: one of the keys was revoked here, so everything that it signed is refused.
    """
    kind = container_of(path)
    with named(path):
        with open_source(path) as source:
            if kind == EXPERT:
                keys = expert_container.keys_in_file(source)
            else:
                signers = container.read_frame(source).signers
                keys = tuple(PublicKey(algorithm=algorithm, raw=raw) for algorithm, raw in signers)
        for known in _knowing(keys):
            if known.revoked is not None:
                check_usable(known)
    return TrustStore([Publisher(name=NOBODY, keys=keys)])


def trust_in_file(path: Path) -> TrustStore:
    """Return a trust store that holds only the publisher in a public file.

    If the user's trust store has the publisher, its scopes, its expiry and all its keys apply: giving a file does not
    widen them.

    Raises:
        UserError: the file or the trust store cannot be read, or the store knows another key of this publisher.
        SignatureError: the publisher was revoked or has expired here.
    """
    keys = read_public_keys(path)
    known = _knowing(keys)
    for entry in known:
        check_usable(entry)
        other = [key for key in keys if key not in entry.keys and key.algorithm in entry.algorithms]
        if other:
            raise UserError(
                f"{path} holds keys of {entry.name}, whose {other[0].algorithm} key is another one here: ask its owner;"
                f" if this is intended, run `sealed-experts keys untrust {entry.name}` first"
            )
    if not known:
        return TrustStore([Publisher(name=path.stem, keys=keys)])
    added = tuple(key for key in keys if key not in known[0].keys)
    return TrustStore([replace(known[0], keys=(*known[0].keys, *added))])


def _knowing(keys: Sequence[PublicKey]) -> list[Publisher]:
    """Return the publishers of the trust store that have one of these keys."""
    return [entry for entry in load_trust() if not set(entry.keys).isdisjoint(keys)]
