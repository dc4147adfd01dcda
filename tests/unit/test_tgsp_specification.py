"""docs/tgsp.md against the code: its test vectors, its limits, and the manifest's schema."""

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealed_experts.sealing import container
from sealed_experts.sealing.errors import PackageError
from sealed_experts.sealing.keys import PublisherKey
from sealed_experts.sealing.manifest_schema import MANIFEST_SCHEMA, MEMBER_NAME, MEMBERS
from sealed_experts.sealing.package import open_bytes
from sealed_experts.sealing.trust import PublicKey, TrustStore

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tgsp.md").read_text(encoding="utf-8")
VECTORS = {
    name: bytes.fromhex("".join(digits.split()))
    for name, digits in re.findall(r"^```hex (\S+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
}
CHANGES = re.findall(r"^\| (\d+) \| `([0-9a-f]{2})` \| (\d+) \|", TEXT, flags=re.MULTILINE)


@pytest.fixture
def key() -> PublisherKey:
    private = Ed25519PrivateKey.from_private_bytes(VECTORS["private-key"])
    public = PublicKey(name="vector", raw=private.public_key().public_bytes_raw())
    return PublisherKey(public=public, _private=private)


def test_the_document_holds_its_vectors():
    names = ["private-key", "public-key", "fingerprint", "manifest", "payload", "signed-message", "file"]
    assert list(VECTORS) == names
    assert len(CHANGES) == 14


def test_key_vectors(key):
    assert key.public.raw == VECTORS["public-key"]
    assert key.public.fingerprint == VECTORS["fingerprint"].hex()


def test_signed_message_vector(key):
    message = container.signed_bytes(
        manifest=VECTORS["manifest"],
        recipients=b"",
        payload=VECTORS["payload"],
        signers=(("ed25519", key.public.raw),),
    )
    assert message == VECTORS["signed-message"]


def test_file_vector(key):
    data = container.pack(manifest=VECTORS["manifest"], payload=VECTORS["payload"], key=key)
    assert data == VECTORS["file"]
    frame = container.parse(data)
    assert container.verify(frame, TrustStore([key.public])) == key.public
    assert (bytes(frame.manifest), bytes(frame.payload)) == (VECTORS["manifest"], VECTORS["payload"])
    with pytest.raises(PackageError, match=r"^manifest: ") as caught:
        open_bytes(data, trust=TrustStore([key.public]))
    assert caught.value.exit_code == 11


@pytest.mark.parametrize(("offset", "byte", "exit_code"), CHANGES)
def test_changed_file_vectors(offset, byte, exit_code, key):
    data = bytearray(VECTORS["file"])
    assert data[int(offset)] != int(byte, 16)
    data[int(offset)] = int(byte, 16)
    with pytest.raises(PackageError) as caught:
        container.verify(container.parse(bytes(data)), TrustStore([key.public]))
    assert caught.value.exit_code == int(exit_code)


def test_the_limits_of_the_document_are_those_of_the_code():
    rows = re.findall(r"^\| \d+ \| \d+ \| ([MRPS]), .*? \| (\d+) to ([\d,]+)", TEXT, flags=re.MULTILINE)
    stated = {letter: (int(least), int(most.replace(",", ""))) for letter, least, most in rows}
    assert stated == {
        "M": (2, container.MAX_MANIFEST),
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
    assert all(schema["additionalProperties"] is False for schema in found)
    assert all(schema["description"] for schema in found)
