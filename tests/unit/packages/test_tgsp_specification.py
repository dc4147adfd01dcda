"""docs/tgsp.md against the code: its test vectors, its limits, and the manifest's schema."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from sealed_experts.packages.content.manifest_schema import MANIFEST_SCHEMA, MAX_MANIFEST, MEMBER_NAME, MEMBERS
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.keys.private_keys import PublisherKey
from sealed_experts.packages.keys.signing import ALGORITHMS
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients import encryption
from sealed_experts.packages.recipients.encryption import Identity, decrypt_chunks, encrypt_chunks, unwrap_key
from sealed_experts.packages.source import Memory
from sealed_experts.packages.tgsp import container
from sealed_experts.packages.tgsp.compression import WINDOW_LOG
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks.building import sealed_parts

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "tgsp.md").read_text(encoding="utf-8")
VECTORS = {
    name: bytes.fromhex("".join(digits.split()))
    for name, digits in re.findall(r"^```hex (\S+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
}
CHANGES = re.findall(r"^\| (\d+) \| `([0-9a-f]{2})` \| (\d+) \|", TEXT, flags=re.MULTILINE)


TWO = bytes.fromhex("".join((ROOT / "docs" / "tgsp-two-signatures.hex").read_text().split()))


@pytest.fixture
def key() -> PublisherKey:
    private = {"ed25519": Ed25519PrivateKey.from_private_bytes(VECTORS["private-key"])}
    return PublisherKey.of(private, name="vector")


@pytest.fixture
def both() -> PublisherKey:
    private = {
        "ed25519": Ed25519PrivateKey.from_private_bytes(VECTORS["private-key"]),
        "ml-dsa-65": MLDSA65PrivateKey.from_seed_bytes(VECTORS["private-key"]),
    }
    return PublisherKey.of(private, name="vector")


def checked(data: bytes, key: PublisherKey) -> container.Frame:
    """Check framing and signatures as a reader does, and return the frame."""
    frame = container.read_frame(Memory(data))
    assert TrustStore([key.public]).publisher_of(frame.signers) == key.public
    payload = data[frame.payload_offset : frame.payload_offset + frame.payload_size]
    container.check_signatures(frame, payload_digest=hashlib.sha256(payload).digest())
    return frame


def message(key: PublisherKey) -> bytes:
    return container.signed_bytes(
        manifest=VECTORS["manifest"],
        recipients=b"",
        payload_size=len(VECTORS["payload"]),
        payload_digest=hashlib.sha256(VECTORS["payload"]).digest(),
        signers=[(each.algorithm, each.raw) for each in key.public.keys],
    )


def test_the_document_holds_its_vectors():
    assert list(VECTORS) == [
        *("private-key", "public-key", "fingerprint", "manifest", "payload", "signed-message", "file"),
        *("second-fingerprint", "second-signed-message", "second-file-sha256"),
        *("recipient-private-key", "recipient-fingerprint", "content-key", "recipients", "stored-payload"),
    ]
    assert len(CHANGES) == 14


def test_key_vectors(key, both):
    assert key.public.raw == VECTORS["public-key"]
    assert key.public.fingerprint == VECTORS["fingerprint"].hex()
    assert both.public.keys[1].fingerprint == VECTORS["second-fingerprint"].hex()


def test_signed_message_vectors(key, both):
    assert message(key) == VECTORS["signed-message"]
    assert message(both) == VECTORS["second-signed-message"]


def test_file_vector(key):
    data = sealed_parts(manifest=VECTORS["manifest"], payload=VECTORS["payload"], by=key)
    assert data == VECTORS["file"]
    assert checked(data, key).manifest == VECTORS["manifest"]
    with pytest.raises(PackageError, match=r"^manifest: ") as caught:
        open_bytes(data, trust=TrustStore([key.public]))
    assert caught.value.exit_code == 11


def test_file_vector_of_two_signatures(both):
    """ML-DSA signs with fresh randomness, so this file can be verified but not made again."""
    assert hashlib.sha256(TWO).digest() == VECTORS["second-file-sha256"]
    frame = checked(TWO, both)
    assert [each.algorithm for each in frame.signatures] == ["ed25519", "ml-dsa-65"]
    MLDSA65PublicKey.from_public_bytes(frame.signatures[1].public_key).verify(frame.signatures[1].value, message(both))
    again = sealed_parts(manifest=VECTORS["manifest"], payload=VECTORS["payload"], by=both)
    assert again[:-3309] == TWO[:-3309]
    assert again != TWO


def test_encryption_vectors():
    identity, manifest = Identity(VECTORS["recipient-private-key"]), VECTORS["manifest"]
    assert identity.recipient.fingerprint == VECTORS["recipient-fingerprint"].hex()
    content_key = unwrap_key(VECTORS["recipients"], identity=identity, manifest=manifest)
    assert content_key == VECTORS["content-key"]
    stored = VECTORS["stored-payload"]
    plain = decrypt_chunks([stored], size=len(stored), content_key=content_key, manifest=manifest)
    assert b"".join(plain) == VECTORS["payload"]
    assert b"".join(encrypt_chunks([VECTORS["payload"]], content_key=content_key, manifest=manifest)) == stored


@pytest.mark.parametrize(("offset", "byte", "exit_code"), CHANGES)
def test_changed_file_vectors(offset, byte, exit_code, key):
    data = bytearray(VECTORS["file"])
    assert data[int(offset)] != int(byte, 16)
    data[int(offset)] = int(byte, 16)
    with pytest.raises(PackageError) as caught:
        checked(bytes(data), key)
    assert caught.value.exit_code == int(exit_code)


def test_the_sizes_of_the_document_are_those_of_the_code():
    for row, attribute in (("public key", "public_key_size"), ("signature", "signature_size")):
        stated = re.search(rf"^\| 2 \| length of the {row} \| (\d+) \| (\d+) \|$", TEXT, flags=re.MULTILINE)
        assert [int(size) for size in stated.groups()] == [getattr(each, attribute) for each in ALGORITHMS.values()]
    assert f"chunks of {encryption.CHUNK:,} bytes" in TEXT
    assert f"1 to {encryption.MAX_RECIPIENTS} |" in TEXT
    assert f"`{encryption.ENCRYPTION}`" in TEXT
    assert encryption.WRAPPED_KEY == 1120 + 48
    assert 1 << WINDOW_LOG == 2 << 20
    assert 1 + encryption.MAX_RECIPIENTS * (32 + encryption.WRAPPED_KEY) <= container.MAX_RECIPIENTS


def test_the_limits_of_the_document_are_those_of_the_code():
    rows = re.findall(r"^\| \d+ \| \d+ \| ([MRPS]), .*? \| (\d+) to ([\d,]+)", TEXT, flags=re.MULTILINE)
    stated = {letter: (int(least), int(most.replace(",", ""))) for letter, least, most in rows}
    assert stated == {
        "M": (2, MAX_MANIFEST),
        "R": (0, container.MAX_RECIPIENTS),
        "P": (0, container.MAX_PAYLOAD),
        "S": (1, container.MAX_SIGNATURES),
    }
    assert container.HEADER.size == 30
    assert f"`{MEMBER_NAME}`" in TEXT


def test_the_members_of_the_document_are_those_of_the_code():
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    rows = re.findall(r"^\| `([A-Za-z_.]+)` \|.*\| (\d+) (\w+)( - 1 MiB)? \|$", TEXT, flags=re.MULTILINE)
    stated = {name: int(size) * units[unit] - (units["MiB"] if less else 0) for name, size, unit, less in rows}
    assert stated == MEMBERS


def test_the_schema_file_is_the_schema_of_the_code():
    assert json.loads((ROOT / "config" / "schemas" / "manifest.schema.json").read_text()) == MANIFEST_SCHEMA


def test_every_object_of_the_schema_refuses_unknown_fields():
    def objects(schema):
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                yield schema
            for value in schema.values():
                yield from objects(value)
        elif isinstance(schema, list):
            for value in schema:
                yield from objects(value)

    found = list(objects(MANIFEST_SCHEMA))
    assert len(found) >= 10
    # Which settings an adapter has and a stage may state, its kind and the stage say (`check_manifest`).
    properties = MANIFEST_SCHEMA["properties"]
    open_ones = [schema for schema in found if schema["additionalProperties"] is not False]
    assert open_ones == [properties[name]["properties"]["settings"] for name in ("adapter", "training")]
    assert all(schema["description"] for schema in found)
