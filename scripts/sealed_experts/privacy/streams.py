"""Keyed random streams: random values are a function of (key, purpose, step), so there is no state to save.

A stream is ChaCha20's keystream (RFC 8439) under a key that HMAC-SHA-256 derives from the run's key, the purpose and
the step. Equal arguments give equal bits on every machine; other arguments give independent ones.
"""

import hashlib
import hmac

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from scipy.special import ndtri

_NONCE = bytes(16)
# One keystream has 2^32 blocks of 64 bytes. A longer request uses several derived keys.
_CHUNK_VALUES = 1 << 22


def derive_key(key: bytes, *parts: str | int) -> bytes:
    """Derive a 32-byte key from `key` and unambiguous parts (each is length-prefixed)."""
    message = b"sealed-experts/stream/v1"
    for part in parts:
        encoded = str(part).encode()
        message += len(encoded).to_bytes(4, "big") + encoded
    return hmac.new(key, message, hashlib.sha256).digest()


class Stream:
    """The random values of one run, addressed by purpose and step."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"a stream's key has 32 bytes, not {len(key)}")
        self._key = key

    def integers(self, purpose: str, step: int, count: int) -> np.ndarray:
        """Return `count` independent 64-bit integers, uint64 of shape [count]."""
        chunks = []
        for index, start in enumerate(range(0, count, _CHUNK_VALUES)):
            size = min(_CHUNK_VALUES, count - start)
            cipher = Cipher(ChaCha20(derive_key(self._key, purpose, step, index), _NONCE), mode=None)
            chunks.append(np.frombuffer(cipher.encryptor().update(bytes(8 * size)), dtype="<u8"))
        return np.concatenate(chunks) if chunks else np.zeros(0, dtype="<u8")

    def uniforms(self, purpose: str, step: int, count: int) -> np.ndarray:
        """Return `count` values (k + 1/2) / 2^53 with k uniform on 53 bits: float64 in (0, 1), shape [count]."""
        top = (self.integers(purpose, step, count) >> np.uint64(11)).astype(np.float64)
        # For k above 2^52, k + 1/2 needs 54 bits and rounds to even. The result must never be 1.0.
        return np.minimum((top + 0.5) * 2.0**-53, 1.0 - 2.0**-53)

    def normals(self, purpose: str, step: int, count: int) -> np.ndarray:
        """Return `count` standard normal values: float64, shape [count], by the inverse of the normal distribution."""
        return ndtri(self.uniforms(purpose, step, count))

    def permutation(self, purpose: str, step: int, count: int) -> np.ndarray:
        """Return a uniformly random order of range(count), int64 of shape [count]."""
        return np.argsort(self.integers(purpose, step, count), kind="stable")

    def seed(self, purpose: str, step: int) -> int:
        """Return a 63-bit seed for a library's own generator."""
        return int(self.integers(purpose, step, 1)[0] >> np.uint64(1))
