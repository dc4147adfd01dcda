"""OpenSSF model signing, version 1.0: a Sigstore bundle next to a folder, signed with an ECDSA P-256 key.

`model_signing sign key` writes such a bundle and `model_signing verify key` accepts it. It is an in-toto statement with
the SHA-256 of every file in the folder, in a DSSE envelope (https://github.com/sigstore/model-transparency).
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.files.regular_file import open_regular, read_regular
from sealed_experts.packages.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.packages.keys.private_file import LARGEST_FILE, read_private_file

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_LARGEST_BUNDLE = 1 << 20


def sign_digests(digests: Mapping[str, str], *, folder: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the bundle of a folder.

    Args:
        digests: SHA-256 of every file, by its name.
        folder: the folder's name in the statement.
    """
    payload = canonical_json(statement(digests, folder=folder)).encode()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD,
        "signatures": [{"keyid": "", "sig": base64.b64encode(_sign(_encoded(payload), key)).decode()}],
    }
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }
    return canonical_json(bundle).encode()


def signed_digests(bundle: bytes, *, key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Check a bundle's signature, then parse the statement and return the SHA-256 of every file that it lists.

    Raises:
        SignatureError: the key did not sign it.
        IncompatibleError: it is another kind of bundle or statement.
        PackageError: it does not follow the format.
    """
    try:
        content = strict_json(bundle.decode("utf-8"))
        envelope = content["dsseEnvelope"]
        (entry,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        value = base64.b64decode(entry["sig"], validate=True)
        media, payload_type = content["mediaType"], envelope["payloadType"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise PackageError("it is not a Sigstore bundle with one DSSE signature") from error
    if media != _BUNDLE or payload_type != _PAYLOAD:
        raise IncompatibleError(
            f"it is a bundle of {ascii(media)[:80]} over {ascii(payload_type)[:80]}; this program reads {_BUNDLE} over"
            f" {_PAYLOAD}"
        )
    try:
        key.verify(value, _encoded(payload), ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise SignatureError(
            f"the signature is not by the key {_hint(key)}, or the signature file was altered"
        ) from error
    return listed_digests(payload)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an ECDSA P-256 private key in PEM.

    Raises:
        UserError: other users can read or replace the file, it cannot be read, or it does not hold such a key.
    """
    content = read_private_file(path, remedy=_HOW)
    try:
        key = load_pem_private_key(content, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a private key in PEM without a passphrase: {_HOW}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError(f"{path} is not an ECDSA P-256 key, which model signing needs: {_HOW}")
    return key


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read an ECDSA P-256 public key in PEM.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        key = load_pem_public_key(read_regular(path, what="the public key", limit=LARGEST_FILE))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a public key in PEM: give the signer's ECDSA P-256 key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError(f"{path} is not an ECDSA P-256 key; model signatures are checked with such keys only")
    return key


def read_bundle(path: Path) -> bytes:
    """Read a signature file.

    Raises:
        UserError: it is missing or cannot be read.
        PackageError: it is too large.
    """
    try:
        with open_regular(path) as (stream, _):
            content = stream.read(_LARGEST_BUNDLE + 1)
    except OSError as error:
        raise UserError(
            f"cannot read the model signature {path}: {error.strerror}; `sealed-experts sign` makes one"
        ) from error
    if len(content) > _LARGEST_BUNDLE:
        raise PackageError(
            f"{path}: it is larger than {_LARGEST_BUNDLE} bytes, so it is not the signature of an expert"
        )
    return content


def statement(digests: Mapping[str, str], *, folder: str) -> dict[str, Any]:
    """Return the in-toto statement about the files of a folder, from their SHA-256 by name."""
    names = sorted(digests)
    return {
        "_type": _STATEMENT,
        "subject": [{"name": folder, "digest": {"sha256": root_digest(digests[name] for name in names)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
        },
    }


def listed_digests(payload: bytes) -> dict[str, str]:
    """Return the digests in a statement whose signature is checked."""
    try:
        statement = strict_json(payload.decode("utf-8"))
        kinds = statement["_type"], statement["predicateType"]
        serialization = statement["predicate"]["serialization"]
        how = tuple(serialization[field] for field in ("method", "hash_type", "allow_symlinks"))
        (subject,) = statement["subject"]
        resources = [
            (entry["name"], entry["algorithm"], bytes.fromhex(entry["digest"]).hex())
            for entry in statement["predicate"]["resources"]
        ]
        listed = {str(name): digest for name, algorithm, digest in resources if algorithm == "sha256"}
        root = subject["digest"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError("its statement is not that of model signing 1.0") from error
    if kinds != (_STATEMENT, _PREDICATE) or how != ("files", "sha256", False):
        raise IncompatibleError(
            f"its statement is {ascii(kinds[1])[:80]} with {ascii(how)[:80]}; this program reads {_PREDICATE} over"
            " whole files with SHA-256 and without links"
        )
    if len(listed) != len(resources) or root_digest(digest for _, _, digest in resources) != root:
        raise PackageError(
            "its statement contradicts itself: its subject does not follow from its names, algorithms and digests"
        )
    return listed


def root_digest(digests: Any) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse, protocol.md)."""
    return b" ".join([b"DSSEv1", b"%d" % len(_PAYLOAD), _PAYLOAD.encode(), b"%d" % len(payload), payload])


def _sign(message: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    try:
        # RFC 6979: the same folder and key give the same signature.
        return key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm:  # OpenSSL before 3.2
        return key.sign(message, ec.ECDSA(SHA256()))


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the name of a key in bundles: the SHA-256 of its PEM."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


_HOW = "`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem` makes one; then chmod 600 it"
