"""All checks of a `.tgsp` package, in order, for a file or bytes in memory."""

import functools
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.packages.content.checks import check_content
from sealed_experts.packages.content.manifest import parse_manifest
from sealed_experts.packages.content.new_folder import written
from sealed_experts.packages.keys.policy import DEFAULT, Policy
from sealed_experts.packages.keys.publisher import Publisher
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity, parse_recipients, unwrap_key
from sealed_experts.packages.report import PackageReport
from sealed_experts.packages.source import Source, blocks
from sealed_experts.packages.tgsp.container import Frame, check_signatures, read_frame
from sealed_experts.packages.tgsp.payload import FirstReading, MemberStream, check_storage, plain_blocks, stored_plainly

_WORTH_A_THREAD = 1 << 20  # bytes: to hash less is faster than to start a thread


def examine(
    source: Source,
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
    content_key: bytes | None = None,
    digest: bool = False,
    weights: bool = False,
    unpack_to: Path | None = None,
) -> PackageReport:
    """Check everything about a package.

    Args:
        content_key: the key of an encrypted payload, for a publisher that has just sealed it and is not a recipient.
        weights: whether the report also holds the weights.
        unpack_to: a new folder to write the members into. Its content is verified only when this function returns.

    Raises:
        UserError, PackageError: as for `open_package`.
    """
    signed = check_signed(source, trust=trust, policy=policy, digest=digest)
    frame, manifest, known, seen = signed.frame, signed.manifest, dict[str, str](), None
    if frame.recipients and content_key is None:
        content_key = unwrap_key(frame.recipients, identity=identity, manifest=frame.manifest)
    first = manifest["members"][0]  # the weights
    # Use the results of the first reading again only if both readings see the same bytes. Content that is written to
    # disk is hashed while it is written.
    if unpack_to is None and source.constant and stored_plainly(manifest):
        known = {first["path"]: signed.payload.first(first["size"])}
        seen = None if weights else functools.partial(signed.payload.hand_over, size=first["size"])
    skip = first["size"] if seen else 0
    stream = MemberStream(plain_blocks(source, frame, manifest, content_key, skip=skip), manifest["members"])
    content = check_content(
        manifest,
        stream.read if unpack_to is None else written(stream.read, unpack_to),
        known=known,
        seen=seen,
        keep_weights=weights,
    )
    stream.finish()
    source.check_unchanged()
    return report(source, signed, members=content.members, shapes=content.shapes)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A package whose signatures and manifest are verified."""

    frame: Frame
    publisher: Publisher
    manifest: dict[str, Any]
    payload: FirstReading
    digest: str | None


def check_signed(source: Source, *, trust: TrustStore, policy: Policy, digest: bool) -> Signed:
    """Check signatures and manifest. The manifest is parsed only after the signatures match."""
    frame = read_frame(source)
    publisher = trust.publisher_of(frame.signers, required=policy.signatures)
    payload = FirstReading(source, frame)
    in_thread = digest and source.size > _WORTH_A_THREAD
    with ThreadPoolExecutor(max_workers=1) as other:
        # Use a second thread: the digests of the file and of the payload are independent.
        file_digest = other.submit(_digest, source) if in_thread else None
        check_signatures(frame, payload_digest=payload.run())
    manifest = parse_manifest(frame.manifest)
    policy.check(publisher, frame.signers, manifest)
    check_storage(manifest, frame)
    return Signed(
        frame=frame,
        publisher=publisher,
        manifest=manifest,
        payload=payload,
        digest=file_digest.result() if file_digest else _digest(source) if digest else None,
    )


def report(
    source: Source,
    signed: Signed,
    *,
    members: Mapping[str, bytes],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> PackageReport:
    """Return the facts about a package after its checks."""
    frame = signed.frame
    return PackageReport(
        manifest=signed.manifest,
        members=dict(members),
        publisher=signed.publisher.fingerprint,
        publisher_name=signed.publisher.name,
        digest=signed.digest,
        size=source.size,
        signatures=tuple(algorithm for algorithm, _ in frame.signers),
        recipients=tuple(parse_recipients(frame.recipients)) if frame.recipients else (),
        shapes=shapes or {},
    )


def _digest(source: Source) -> str:
    state = hashlib.sha256()
    for block in blocks(source, offset=0, length=source.size):
        state.update(block)
    return state.hexdigest()
