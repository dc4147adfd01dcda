"""The bytes of TGSP version 1: framing, signed message, check of signatures. `docs/tgsp.md` specifies every byte.

This module does not look into the manifest, the recipients or the payload.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sealed_experts.packages.content.manifest_schema import MAX_MANIFEST
from sealed_experts.packages.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.packages.keys.signing import ALGORITHMS, verify_signature
from sealed_experts.packages.source import Source

# As in PNG: a first byte that is not text, and line ends that a transfer in text mode would change.
MAGIC = b"\x89TGSP\r\n\x1a"
VERSION = 1
CONTEXT = b"sealed-experts/tgsp/v1"
HEADER = struct.Struct(">8sHIIQI")  # magic, version, lengths of manifest, recipients, payload and signatures

MAX_RECIPIENTS = 1 << 16
MAX_PAYLOAD = 1 << 33
MAX_SIGNATURES = 1 << 16
MAX_SIGNERS = 4


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One entry of the signature block: the signer's algorithm and raw public key, and the signature."""

    algorithm: str
    public_key: bytes
    value: bytes


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The parts of a file, found only by their lengths. Nothing is verified yet.

    Attributes:
        header: the first 30 bytes as stored.
        manifest: the manifest as stored.
        recipients: the recipients as stored.
        payload_offset: where the payload starts.
        payload_size: its length.
        signatures: the signature block, parsed.
    """

    header: bytes
    manifest: bytes
    recipients: bytes
    payload_offset: int
    payload_size: int
    signatures: tuple[Signature, ...]

    @property
    def signers(self) -> tuple[tuple[str, bytes], ...]:
        """Algorithm and raw public key of every signer, in the block's order."""
        return tuple((signature.algorithm, signature.public_key) for signature in self.signatures)


def read_frame(source: Source) -> Frame:
    """Cut a file into its parts. Before more is read, the lengths are compared with their limits and the file's size.

    Raises:
        IncompatibleError: the file has another version of the format.
        PackageError: the framing is wrong.
    """
    header = bytes(source.read(0, min(source.size, HEADER.size)))
    manifest, recipients, payload, signatures = _lengths(header)
    payload_offset = HEADER.size + manifest + recipients
    _check_size(source.size, payload_offset + payload + signatures)
    return Frame(
        header=header,
        manifest=bytes(source.read(HEADER.size, manifest)),
        recipients=bytes(source.read(HEADER.size + manifest, recipients)),
        payload_offset=payload_offset,
        payload_size=payload,
        signatures=_parse_signatures(bytes(source.read(payload_offset + payload, signatures))),
    )


def check_signatures(frame: Frame, *, payload_digest: bytes) -> None:
    """Check every signature of a frame with the key that it names.

    This shows that the file is unaltered. The trust store decides whether to trust these keys.

    Args:
        payload_digest: SHA-256 of the payload as stored.

    Raises:
        SignatureError: a signature does not match, or its algorithm is unknown.
        PackageError: the framing does not follow from the content.
    """
    message = signed_bytes(
        manifest=frame.manifest,
        recipients=frame.recipients,
        payload_size=frame.payload_size,
        payload_digest=payload_digest,
        signers=frame.signers,
    )
    for each in frame.signatures:
        verify_signature(algorithm=each.algorithm, public_key=each.public_key, value=each.value, message=message)
    # The header is not signed, so rebuild and compare it. The signature block needs no such comparison: it was parsed
    # completely, and its labels and sizes are those of algorithms whose check passed.
    block = signature_block(frame.signatures)
    lengths = (len(frame.manifest), len(frame.recipients), frame.payload_size, len(block))
    if frame.header != HEADER.pack(MAGIC, VERSION, *lengths):
        raise PackageError("the framing does not follow from the content: the file was altered")


def signed_bytes(
    *,
    manifest: bytes,
    recipients: bytes,
    payload_size: int,
    payload_digest: bytes,
    signers: Sequence[tuple[str, bytes]],
) -> bytes:
    """Return the message that every signer signs. `signers` are pairs of algorithm and raw public key, in order.

    Each element has a fixed length or states its length, so different contents give different messages. The message
    names all signers, so nobody can remove a signature.
    """
    required = bytes([len(signers)]) + b"".join(
        bytes([len(algorithm)]) + algorithm.encode("ascii") + hashlib.sha256(public_key).digest()
        for algorithm, public_key in signers
    )
    return b"".join(
        [
            CONTEXT,
            required,
            hashlib.sha256(manifest).digest(),
            hashlib.sha256(recipients).digest(),
            payload_size.to_bytes(8, "big"),
            payload_digest,
        ]
    )


def header_bytes(*, manifest: int, recipients: int, payload: int, signatures: int) -> bytes:
    """Return the header for parts of these lengths.

    Raises:
        PackageError: a part is larger than the format allows.
    """
    header = HEADER.pack(MAGIC, VERSION, manifest, recipients, payload, signatures)
    _lengths(header)
    return header


def signature_block(signatures: Sequence[Signature]) -> bytes:
    """Return the signature block of these signatures."""
    pieces = [bytes([len(signatures)])]
    for signature in signatures:
        pieces += [bytes([len(signature.algorithm)]), signature.algorithm.encode("ascii")]
        pieces += [len(signature.public_key).to_bytes(2, "big"), signature.public_key]
        pieces += [len(signature.value).to_bytes(2, "big"), signature.value]
    return b"".join(pieces)


def _lengths(header: bytes) -> tuple[int, int, int, int]:
    if header[: len(MAGIC)] != MAGIC:
        raise PackageError("this is not a TGSP package: its first bytes are not TGSP's")
    if len(header) < HEADER.size:
        raise PackageError(f"the file is cut short: it has {len(header)} bytes, but the header alone has {HEADER.size}")
    _, version, manifest, recipients, payload, signatures = HEADER.unpack(header)
    if version != VERSION:
        raise IncompatibleError(f"this package has version {version} of the TGSP format; this program reads {VERSION}")
    for name, length, least, most in (
        ("manifest", manifest, 2, MAX_MANIFEST),
        ("recipients", recipients, 0, MAX_RECIPIENTS),
        ("payload", payload, 0, MAX_PAYLOAD),
        ("signature block", signatures, 1, MAX_SIGNATURES),
    ):
        if not least <= length <= most:
            raise PackageError(f"the {name} has {length} bytes; the format allows {least} to {most}")
    return manifest, recipients, payload, signatures


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        problem = "cut short" if size < expected else "followed by foreign bytes"
        raise PackageError(f"the file is {problem}: it has {size} bytes, but its header says {expected}")


def _parse_signatures(block: bytes) -> tuple[Signature, ...]:
    count, offset, signatures = block[0], 1, []
    if not 1 <= count <= MAX_SIGNERS:
        raise PackageError(f"the signature block has {count} signatures; the format allows 1 to {MAX_SIGNERS}")
    for _ in range(count):
        label, offset = _take(block, offset, width=1)
        public_key, offset = _take(block, offset, width=2)
        value, offset = _take(block, offset, width=2)
        signatures.append(Signature(algorithm=_known(label), public_key=public_key, value=value))
    if offset != len(block):
        raise PackageError(f"the signature block has {len(block) - offset} bytes after its last signature")
    labels = [signature.algorithm for signature in signatures]
    if labels != sorted(set(labels)):
        raise PackageError(f"the signature block's algorithms are {', '.join(labels)}; they must be sorted, each once")
    return tuple(signatures)


def _known(label: bytes) -> str:
    for name in ALGORITHMS:
        if name.encode("ascii") == label:
            return name
    raise SignatureError(
        f"the package is signed with the algorithm {ascii(label.decode('latin-1'))[:40]}, which this program does not "
        f"know; it knows {', '.join(ALGORITHMS)}"
    )


def _take(block: bytes, offset: int, *, width: int) -> tuple[bytes, int]:
    """Return the element at `offset`, whose first `width` bytes hold its length, and the offset after it."""
    start = offset + width
    end = start + int.from_bytes(block[offset:start], "big")
    if start > len(block) or end > len(block):
        raise PackageError("the signature block is cut short: an element reaches past its end")
    return block[start:end], end
