"""A publisher's key files: PEM with one block for each algorithm, and nothing else."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sealed_experts.errors import UserError
from sealed_experts.files.regular_file import read_regular
from sealed_experts.packages.keys.pkcs8 import Serialisable, encrypted_pem
from sealed_experts.packages.keys.private_file import LARGEST_FILE
from sealed_experts.packages.keys.publisher import PublicKey
from sealed_experts.packages.keys.signing import ALGORITHMS, ED25519, PrivateKey, algorithm_of
from sealed_experts.packages.keys.trust_entry import refuse_weak

_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----\r?\n[A-Za-z0-9+/=\r\n]+-----END \1-----\s*")
_PUBLIC, _PRIVATE, _ENCRYPTED = b"PUBLIC KEY", b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"
_MAKE = "`sealed-experts keys create` makes one"


def read_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """Read a publisher's public file: one SubjectPublicKeyInfo for each algorithm, including Ed25519.

    Raises:
        UserError: the file is missing, holds something else, or holds a weak key.
    """
    return parse_public(read_regular(path, what="the public key", limit=LARGEST_FILE), where=str(path))


def parse_public(content: bytes, *, where: str) -> tuple[PublicKey, ...]:
    """Return the keys in a public file's content, Ed25519 first.

    Raises:
        UserError: as for `read_public_keys`.
    """
    if b"PRIVATE KEY" in content:
        raise UserError(f"{where} holds a private key: give the public half (`sealed-experts keys export`)")
    found: dict[str, PublicKey] = {}
    remedy = "give a file from `sealed-experts keys export`"
    for label, block in _blocks(content, f"{where} is not a public key in PEM: {remedy}"):
        if label != _PUBLIC:
            raise UserError(f"{where} is not a public key in PEM: it holds a {label.decode()}; {remedy}")
        try:
            key = load_pem_public_key(block)
        except UnsupportedAlgorithm as error:
            raise UserError(f"{where} holds a key that the installed library cannot use ({error})") from error
        except ValueError as error:
            raise UserError(f"{where} is not a public key in PEM: {remedy}") from error
        algorithm = _taken(key, found, where)
        found[algorithm] = PublicKey(algorithm=algorithm, raw=key.public_bytes_raw())  # type: ignore[union-attr]
        refuse_weak(found[algorithm], where)
    _require_ed25519(found, where)
    return tuple(found[algorithm] for algorithm in ALGORITHMS if algorithm in found)


def private_pem(keys: Iterable[Serialisable], *, passphrase: bytes | None) -> bytes:
    """Return private keys as PKCS8 in PEM, encrypted if there is a passphrase."""
    if passphrase is not None:
        return b"".join(encrypted_pem(key, passphrase=passphrase) for key in keys)
    return b"".join(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys)


def is_encrypted(content: bytes) -> bool:
    """Say whether a private file needs a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in content


def known_public(content: bytes, *, where: str) -> tuple[PublicKey, ...] | None:
    """Return the public halves in a private file's content; None if they are encrypted too.

    Raises:
        UserError: the content is not that of a private file.
    """
    if not is_encrypted(content):
        return public_keys(parse_private(content, where=where, secret=None))
    stated = b"".join(block for label, block in _private_blocks(content, where) if label == _PUBLIC)
    return parse_public(stated, where=where) if stated else None


def public_keys(private: Mapping[str, PrivateKey]) -> tuple[PublicKey, ...]:
    """Return the public halves of private keys by algorithm, Ed25519 first."""
    return tuple(
        PublicKey(algorithm=algorithm, raw=private[algorithm].public_key().public_bytes_raw())
        for algorithm in ALGORITHMS
        if algorithm in private
    )


def parse_private(content: bytes, *, where: str, secret: bytes | None) -> Mapping[str, PrivateKey]:
    """Return the keys in a private file's content by algorithm, Ed25519 first.

    A file with a passphrase may also hold the public halves, to show whose key it is without the passphrase.

    Args:
        content: the file's content.
        where: the file's name for messages.
        secret: the passphrase, or None for a file that needs none.

    Raises:
        UserError: the content is something else, the passphrase is wrong, or the library here lacks an algorithm.
    """
    found: dict[str, PrivateKey] = {}
    stated = b""
    for label, block in _private_blocks(content, where):
        if label == _PUBLIC and secret is not None:
            stated += block
            continue
        if label != (_PRIVATE if secret is None else _ENCRYPTED):
            raise UserError(f"{where} must hold PKCS8 private keys alone, all or none of them encrypted: {_MAKE}")
        try:
            key = load_pem_private_key(block, password=secret)
        except UnsupportedAlgorithm as error:
            raise UserError(f"{where} holds a key that the installed library cannot use: {error}") from error
        except (TypeError, ValueError) as error:
            if secret is not None:
                raise UserError(f"the passphrase does not open {where}, or the file is damaged") from error
            raise UserError(f"{where} is not a private key in PEM: {_MAKE}") from error
        found[_taken(key, found, where)] = key  # type: ignore[assignment]
    _require_ed25519(found, where)
    if stated and parse_public(stated, where=where) != public_keys(found):
        raise UserError(f"{where} states other public keys than those of its private keys: it was altered or damaged")
    return {algorithm: found[algorithm] for algorithm in ALGORITHMS if algorithm in found}


def _private_blocks(content: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    return _blocks(content, f"{where} is not a private key in PEM: {_MAKE}")


def _blocks(content: bytes, problem: str) -> Iterator[tuple[bytes, bytes]]:
    position = len(content) - len(content.lstrip())
    if position == len(content):
        raise UserError(problem)
    while position < len(content):
        block = _BLOCK.match(content, position)
        if block is None:
            raise UserError(problem)
        yield block.group(1), block.group(0)
        position = block.end()


def _taken(key: object, found: Mapping[str, object], where: str) -> str:
    algorithm = algorithm_of(key)
    if algorithm is None:
        raise UserError(f"{where} holds a {type(key).__name__}: publishers' keys are {_named()}")
    if algorithm in found:
        raise UserError(f"{where} holds two {algorithm} keys: a publisher has one of each algorithm")
    return algorithm


def _require_ed25519(found: Mapping[str, object], where: str) -> None:
    if ED25519 not in found:
        raise UserError(f"{where} holds no Ed25519 key: publishers' keys are {_named()}")


def _named() -> str:
    return "Ed25519, and optionally ML-DSA-65"
