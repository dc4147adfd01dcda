"""PKCS8 encrypted so that guessing the passphrase is slow: PBES2 with scrypt (RFC 8018, RFC 7914) and AES-256-CBC.

The library's own writer uses 2,048 rounds of PBKDF2: a GPU tries millions of passphrases per second. The library and
OpenSSL can read the form that is written here.
"""

import base64
import secrets
import textwrap
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)


class Serialisable(Protocol):
    """A private key of any algorithm."""

    def private_bytes(
        self, encoding: Encoding, format: PrivateFormat, encryption_algorithm: KeySerializationEncryption
    ) -> bytes:
        """Return the serialised key."""
        ...


# OWASP's parameters for 16 MiB. OpenSSL's command line refuses a key that needs more than 32 MiB.
COST, BLOCK_SIZE, PARALLEL = 1 << 14, 8, 5
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04
_PBES2 = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42


def encrypted_pem(key: Serialisable, *, passphrase: bytes) -> bytes:
    """Return a private key as `ENCRYPTED PRIVATE KEY` in PEM."""
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    salt, start = secrets.token_bytes(16), secrets.token_bytes(16)
    derived = Scrypt(salt=salt, length=32, n=COST, r=BLOCK_SIZE, p=PARALLEL).derive(passphrase)
    padder, encryptor = PKCS7(128).padder(), Cipher(AES256(derived), CBC(start)).encryptor()
    stored = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    numbers = b"".join(_integer(number) for number in (COST, BLOCK_SIZE, PARALLEL))
    derivation = _element(_SEQUENCE, _SCRYPT + _element(_SEQUENCE, _element(_OCTETS, salt) + numbers))
    cipher = _element(_SEQUENCE, _AES_256_CBC + _element(_OCTETS, start))
    scheme = _element(_SEQUENCE, _PBES2 + _element(_SEQUENCE, derivation + cipher))
    whole = base64.b64encode(_element(_SEQUENCE, scheme + _element(_OCTETS, stored))).decode()
    lines = "\n".join(textwrap.wrap(whole, 64))
    return f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{lines}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode()


def _element(tag: int, content: bytes) -> bytes:
    """Return a DER element: its tag, its length, its content."""
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(digits)]) + digits + content


def _integer(number: int) -> bytes:
    return _element(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))
