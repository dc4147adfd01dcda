"""TGSP version 1, the bytes: framing, what is signed, and the signature's check. `docs/tgsp.md` specifies every byte.

Nothing here looks inside the manifest, the recipients or the payload.
"""

import hashlib
import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealed_experts.errors import UserError
from sealed_experts.sealing.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.sealing.keys import PublisherKey
from sealed_experts.sealing.regular_file import open_regular
from sealed_experts.sealing.trust import ALGORITHM, PublicKey, TrustStore, fingerprint

# As PNG's: a first byte that is no text, and line ends that a transfer in text mode would alter.
MAGIC = b"\x89TGSP\r\n\x1a"
VERSION = 1
CONTEXT = b"sealed-experts/tgsp/v1"
HEADER = struct.Struct(">8sHIIQI")  # magic, version, lengths of manifest, recipients, payload and signatures

MAX_MANIFEST = 1 << 20
MAX_RECIPIENTS = 1 << 16
MAX_PAYLOAD = 1 << 32
MAX_SIGNATURES = 1 << 16
MAX_SIGNERS = 4


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One entry of the signature block: the signer's algorithm and raw public key, and the signature."""

    algorithm: str
    public_key: bytes
    value: bytes

    @property
    def signer(self) -> str:
        """Fingerprint of the public key."""
        return fingerprint(self.public_key)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The parts of a file, found by their lengths alone. None of it is verified yet."""

    data: bytes
    manifest: memoryview
    recipients: memoryview
    payload: memoryview
    signatures: tuple[Signature, ...]


def read_container(path: str | os.PathLike[str]) -> bytes:
    """Read a package file once. Its lengths are held against their limits and the file's size before it is read.

    Raises:
        UserError: the file is missing or not a regular file.
        PackageError: its framing is wrong.
    """
    try:
        with open_regular(path) as (stream, status):
            header = stream.read(HEADER.size)
            expected = sum(_lengths(header)) + HEADER.size
            _check_size(status.st_size, expected)
            # One byte more than expected, so that a file that has grown meanwhile is noticed.
            return header + stream.read(expected - len(header) + 1)
    except OSError as error:
        raise UserError(f"cannot read the package {os.fspath(path)}: {error.strerror}") from error


def parse(data: bytes) -> Frame:
    """Cut a file's bytes into its parts.

    Raises:
        IncompatibleError: another version of the format.
        PackageError: the framing is wrong.
    """
    lengths = _lengths(data[: HEADER.size])
    _check_size(len(data), sum(lengths) + HEADER.size)
    parts, offset, view = [], HEADER.size, memoryview(data)
    for length in lengths:
        parts.append(view[offset : offset + length])
        offset += length
    manifest, recipients, payload, signatures = parts
    return Frame(
        data=data,
        manifest=manifest,
        recipients=recipients,
        payload=payload,
        signatures=_parse_signatures(bytes(signatures)),
    )


def verify(frame: Frame, trust: TrustStore) -> PublicKey:
    """Check the signature of a frame under a trusted key and return that key.

    Raises:
        SignatureError: no trusted key signed these bytes.
    """
    signature = _single_signature(frame)
    key = trust.find(signature.signer)
    if key is None:
        raise SignatureError(
            f"the signature is by the key {signature.signer}, which is not trusted here; if you know whose it is, get "
            "the key from its owner and run `sealed-experts keys trust`"
        )
    _check_signature(frame, key.raw)
    return key


def verify_under_own_key(frame: Frame) -> str:
    """Check a frame under the key that it carries itself and return that key's fingerprint.

    This shows that the file is whole, not who made it: anyone can put in a key of their own.

    Raises:
        SignatureError: the bytes and the signature do not belong together.
    """
    signature = _single_signature(frame)
    _check_signature(frame, signature.public_key)
    return signature.signer


def pack(*, manifest: bytes, payload: bytes, key: PublisherKey) -> bytes:
    """Return a signed file. Ed25519 is deterministic: the same content and key give the same bytes.

    Raises:
        PackageError: a part is larger than the format allows.
    """
    signers = ((ALGORITHM, key.public.raw),)
    value = key.sign(signed_bytes(manifest=manifest, recipients=b"", payload=payload, signers=signers))
    signatures = _signature_block((Signature(algorithm=ALGORITHM, public_key=key.public.raw, value=value),))
    header = HEADER.pack(MAGIC, VERSION, len(manifest), 0, len(payload), len(signatures))
    _lengths(header)
    return header + manifest + payload + signatures


def signed_bytes(
    *,
    manifest: bytes | memoryview,
    recipients: bytes | memoryview,
    payload: bytes | memoryview,
    signers: tuple[tuple[str, bytes], ...],
) -> bytes:
    """Return the message that every signer signs. `signers` are pairs of algorithm and raw public key, in order.

    Each element has a fixed length or carries it, so no two contents give the same message.
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
            len(payload).to_bytes(8, "big"),
            hashlib.sha256(payload).digest(),
        ]
    )


def _check_signature(frame: Frame, public_key: bytes) -> None:
    signers = tuple((signature.algorithm, signature.public_key) for signature in frame.signatures)
    message = signed_bytes(manifest=frame.manifest, recipients=frame.recipients, payload=frame.payload, signers=signers)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(frame.signatures[0].value, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            "the signature does not match: the file was altered or damaged after it was sealed; get it again"
        ) from error
    # The parser leaves no byte free; rebuilding what is not signed proves it for this very file.
    block = _signature_block(frame.signatures)
    header = HEADER.pack(MAGIC, VERSION, len(frame.manifest), len(frame.recipients), len(frame.payload), len(block))
    if frame.data[: HEADER.size] != header or not frame.data.endswith(block):
        raise PackageError("the framing is not what this content gives: the file was altered")


def _single_signature(frame: Frame) -> Signature:
    algorithms = [signature.algorithm for signature in frame.signatures]
    if algorithms != [ALGORITHM]:
        raise SignatureError(
            f"the package requires the signatures {', '.join(map(ascii, algorithms))}; this version checks exactly one,"
            f" {ALGORITHM}"
        )
    return frame.signatures[0]


def _lengths(header: bytes) -> tuple[int, int, int, int]:
    if len(header) < len(MAGIC) or header[: len(MAGIC)] != MAGIC:
        raise PackageError("this is not a TGSP package: its first bytes are not TGSP's")
    if len(header) < HEADER.size:
        raise PackageError(f"the file is cut short: {len(header)} bytes where the header alone has {HEADER.size}")
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
        raise PackageError(f"the file is {problem}: it has {size} bytes where its header says {expected}")


def _parse_signatures(block: bytes) -> tuple[Signature, ...]:
    count, offset, signatures = block[0], 1, []
    if not 1 <= count <= MAX_SIGNERS:
        raise PackageError(f"the signature block has {count} signatures; the format allows 1 to {MAX_SIGNERS}")
    for _ in range(count):
        algorithm, offset = _take(block, offset, width=1)
        public_key, offset = _take(block, offset, width=2)
        value, offset = _take(block, offset, width=2)
        if not algorithm.isascii():
            raise PackageError("the signature block names an algorithm that is not ASCII")
        signatures.append(Signature(algorithm=algorithm.decode("ascii"), public_key=public_key, value=value))
    if offset != len(block):
        raise PackageError(f"the signature block has {len(block) - offset} bytes after its last signature")
    return tuple(signatures)


def _take(block: bytes, offset: int, *, width: int) -> tuple[bytes, int]:
    """Return the element at `offset`, whose length stands in its first `width` bytes, and the offset after it."""
    start = offset + width
    end = start + int.from_bytes(block[offset:start], "big")
    if start > len(block) or end > len(block):
        raise PackageError("the signature block is cut short: an element reaches past its end")
    return block[start:end], end


def _signature_block(signatures: tuple[Signature, ...]) -> bytes:
    pieces = [bytes([len(signatures)])]
    for signature in signatures:
        pieces += [bytes([len(signature.algorithm)]), signature.algorithm.encode("ascii")]
        pieces += [len(signature.public_key).to_bytes(2, "big"), signature.public_key]
        pieces += [len(signature.value).to_bytes(2, "big"), signature.value]
    return b"".join(pieces)
