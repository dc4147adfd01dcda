"""The signature algorithms of packages and statements: Ed25519 (RFC 8032) and ML-DSA-65 (FIPS 204).

Both sign the message itself, ML-DSA with an empty context. Each kind of message begins with a different prefix, so a
signature of one kind is never valid for another.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealed_experts.packages.errors import SignatureError

ED25519 = "ed25519"
ML_DSA_65 = "ml-dsa-65"
PrivateKey = Ed25519PrivateKey | MLDSA65PrivateKey
PRIVATE_KEYS: Mapping[str, type[Ed25519PrivateKey] | type[MLDSA65PrivateKey]] = {
    ED25519: Ed25519PrivateKey,
    ML_DSA_65: MLDSA65PrivateKey,
}
PUBLIC_KEYS: Mapping[str, type[Ed25519PublicKey] | type[MLDSA65PublicKey]] = {
    ED25519: Ed25519PublicKey,
    ML_DSA_65: MLDSA65PublicKey,
}
_PROBE = b"sealed-experts/self-test/v1\n"
_LACKING = "the OpenSSL of the package `cryptography` does not support it; install cryptography>=50"
# The points whose order divides 8, without the sign bit, canonical or not. For such a key anyone can make signatures
# without a private key; for the neutral point, one constant signs every message. Neither RFC 8032 nor the library
# refuses them. The list is libsodium's (ed25519_ref10.c, `ge25519_has_small_order`).
_SMALL_ORDER = frozenset(
    (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Facts about a signature algorithm.

    Attributes:
        name: its label in containers, key files and policies.
        public_key_size: bytes of a raw public key.
        signature_size: bytes of a signature.
        randomised: whether two signatures of one message differ.
    """

    name: str
    public_key_size: int
    signature_size: int
    randomised: bool

    def available(self) -> bool:
        """Say whether the OpenSSL of `cryptography` supports the algorithm."""
        return is_available(self.name)


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        ED25519: Algorithm(name=ED25519, public_key_size=32, signature_size=64, randomised=False),
        ML_DSA_65: Algorithm(name=ML_DSA_65, public_key_size=1952, signature_size=3309, randomised=True),
    }
)


def verify_signature(*, algorithm: str, public_key: bytes, value: bytes, message: bytes) -> None:
    """Check a signature.

    Raises:
        SignatureError: the signature does not match, the algorithm is unknown or not available, or the key is weak.
    """
    known = ALGORITHMS.get(algorithm)
    if known is None:
        raise SignatureError(
            f"the signature algorithm {ascii(algorithm)[:40]} is unknown; known are {', '.join(ALGORITHMS)}"
        )
    if not known.available():
        raise SignatureError(f"{algorithm} cannot be checked here: {_LACKING}")
    if algorithm == ED25519 and is_weak(public_key):
        raise SignatureError("the signer's key is a point of small order, for which anyone can make signatures")
    try:
        PUBLIC_KEYS[algorithm].from_public_bytes(public_key).verify(value, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            f"the {algorithm} signature does not match: the content was altered or damaged after it was signed"
        ) from error


def fingerprint(public_key: bytes) -> str:
    """Return a raw public key's fingerprint: its SHA-256, lower-case hex."""
    return hashlib.sha256(public_key).hexdigest()


def is_weak(public_key: bytes) -> bool:
    """Say whether a raw Ed25519 public key is a point of small order: anyone can make signatures for such a key."""
    return (public_key[:31] + bytes([byte & 0x7F for byte in public_key[31:32]])).hex() in _SMALL_ORDER


def available_algorithms() -> tuple[str, ...]:
    """Return the names of the algorithms that work here, in signing order."""
    return tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.available())


def encode_public(*, algorithm: str, public_key: bytes) -> bytes:
    """Return a raw public key as SubjectPublicKeyInfo in PEM (RFC 8410, RFC 9881).

    Raises:
        ValueError: the key's length is not its algorithm's.
    """
    key = PUBLIC_KEYS[algorithm].from_public_bytes(public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def generate_key(algorithm: str) -> PrivateKey:
    """Return a new private key from the operating system's generator. The algorithm must be available."""
    return PRIVATE_KEYS[algorithm].generate()


def algorithm_of(key: object) -> str | None:
    """Return the algorithm of a private or public key object; None if we do not use it."""
    return next((name for name in ALGORITHMS if isinstance(key, (PRIVATE_KEYS[name], PUBLIC_KEYS[name]))), None)


def self_test(private: PrivateKey) -> None:
    """Sign with a key, check the signature, and check that another message is refused.

    Raises:
        SignatureError: the library does not work correctly.
    """
    algorithm, raw = algorithm_of(private), private.public_key().public_bytes_raw()
    assert algorithm is not None
    value = private.sign(_PROBE)
    verify_signature(algorithm=algorithm, public_key=raw, value=value, message=_PROBE)
    if len(value) != ALGORITHMS[algorithm].signature_size or len(raw) != ALGORITHMS[algorithm].public_key_size:
        raise SignatureError(f"{algorithm}: this library's keys or signatures have another size than the standard's")
    try:
        verify_signature(algorithm=algorithm, public_key=raw, value=value, message=_PROBE + b"\n")
    except SignatureError:
        return
    raise SignatureError(f"{algorithm}: this library accepts a signature of another message")


@functools.cache
def is_available(name: str) -> bool:
    # Without the algorithm, reading a public key fails too. This test takes a tenth of the time of making a key.
    """Say whether the OpenSSL of `cryptography` supports an algorithm."""
    try:
        PUBLIC_KEYS[name].from_public_bytes(bytes(ALGORITHMS[name].public_key_size))
    except UnsupportedAlgorithm:
        return False
    return True
