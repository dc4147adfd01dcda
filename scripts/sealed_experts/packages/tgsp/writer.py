"""Write the bytes of a `.tgsp` package, streamed from files."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from sealed_experts.errors import UserError
from sealed_experts.packages.content.manifest import manifest_bytes, payload_order
from sealed_experts.packages.keys.private_keys import PublisherKey
from sealed_experts.packages.recipients.encryption import CONTENT_KEY, ENCRYPTION, Recipient, wrap_key
from sealed_experts.packages.source import BytesOrFile, content_blocks, measure
from sealed_experts.packages.tgsp.compression import COMPRESSIONS
from sealed_experts.packages.tgsp.container import HEADER, Signature, header_bytes, signature_block, signed_bytes
from sealed_experts.packages.tgsp.payload import stored_blocks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before the first byte is written."""

    manifest: Mapping[str, Any]
    manifest_content: bytes
    members: Mapping[str, BytesOrFile]
    key: PublisherKey
    signatures: tuple[str, ...]
    recipients: bytes
    content_key: bytes | None


def plan_package(
    manifest: Mapping[str, Any],
    members: Mapping[str, BytesOrFile],
    key: PublisherKey,
    signatures: Sequence[str] | None,
    recipients: Sequence[Recipient],
    compression: str,
) -> Plan:
    """Hash the members and complete the manifest. Arguments as for `seal_package`.

    Raises:
        PackageError: a package may not hold this manifest.
        UserError: a member cannot be read, or an argument is unknown.
    """
    if compression not in COMPRESSIONS:
        raise UserError(f"the compression {compression!r} is unknown; known are {', '.join(COMPRESSIONS)}")
    chosen = tuple(sorted(set(key.public.algorithms if signatures is None else signatures)))
    if not chosen or not set(chosen) <= set(key.public.algorithms):
        raise UserError(
            f"cannot sign with {', '.join(chosen) or 'no algorithm'}: the publisher key {key.public.name} can sign "
            f"with {' and '.join(key.public.algorithms)}"
        )
    complete = {
        **manifest,
        "payload": {"compression": compression, "encryption": ENCRYPTION if recipients else "none"},
        "members": [_entry(path, members[path]) for path in payload_order(members)],
    }
    content = manifest_bytes(complete)
    content_key = secrets.token_bytes(CONTENT_KEY) if recipients else None
    return Plan(
        manifest=complete,
        manifest_content=content,
        members=members,
        key=key,
        signatures=chosen,
        recipients=b"" if content_key is None else wrap_key(content_key, recipients=recipients, manifest=content),
        content_key=content_key,
    )


def _entry(path: str, content: BytesOrFile) -> dict[str, Any]:
    size, digest = measure(content)
    return {"path": path, "size": size, "sha256": digest}


def write_plan(stream: IO[bytes], plan: Plan) -> None:
    """Write a package to an empty stream that can seek.

    Raises:
        PackageError: a part is larger than the format allows.
        UserError: a member cannot be read, or the key cannot sign.
    """
    stream.write(bytes(HEADER.size))
    stream.write(plan.manifest_content)
    stream.write(plan.recipients)
    plain = (block for entry in plan.manifest["members"] for block in content_blocks(plan.members[entry["path"]]))
    payload_hash, size = hashlib.sha256(), 0
    for block in stored_blocks(plain, plan.manifest, plan.manifest_content, plan.content_key):
        payload_hash.update(block)
        stream.write(block)
        size += len(block)
    block = _signatures(plan, payload_size=size, payload_digest=payload_hash.digest())
    stream.write(block)
    stream.seek(0)
    lengths = {"manifest": len(plan.manifest_content), "recipients": len(plan.recipients), "payload": size}
    stream.write(header_bytes(**lengths, signatures=len(block)))


def _signatures(plan: Plan, *, payload_size: int, payload_digest: bytes) -> bytes:
    keys = {key.algorithm: key.raw for key in plan.key.public.keys}
    message = signed_bytes(
        manifest=plan.manifest_content,
        recipients=plan.recipients,
        payload_size=payload_size,
        payload_digest=payload_digest,
        signers=[(algorithm, keys[algorithm]) for algorithm in plan.signatures],
    )
    return signature_block(
        [
            Signature(
                algorithm=algorithm, public_key=keys[algorithm], value=plan.key.sign(message, algorithm=algorithm)
            )
            for algorithm in plan.signatures
        ]
    )
