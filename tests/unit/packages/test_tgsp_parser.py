"""Arbitrary bytes, at every depth that a parser reaches, raise our own error or nothing."""

import contextlib
import json
import os
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.content.linter import read_adapter_config
from sealed_experts.packages.content.manifest import parse_manifest
from sealed_experts.packages.content.tensors import read_tensors
from sealed_experts.packages.errors import EncryptedError, PackageError
from sealed_experts.packages.recipients.encryption import Identity, encrypt_chunks, wrap_key
from sealed_experts.packages.tgsp import container
from sealed_experts.packages.tgsp.compression import compress, decompress
from sealed_experts.packages.tgsp.package import open_bytes, open_package, verify_package
from tests.attacks import building

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HONEST = building.package()
IDENTITY = Identity(bytes(range(96)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(st.binary(max_size=400))
def test_arbitrary_bytes(data):
    with pytest.raises(PackageError):
        open_bytes(data, trust=building.trust())


@QUICK
@given(st.binary(max_size=200), st.binary(max_size=100), st.binary(max_size=200))
def test_arbitrary_parts_in_a_sound_frame(manifest, payload, signatures):
    lengths = (len(manifest), 0, len(payload), len(signatures))
    header = container.HEADER.pack(container.MAGIC, container.VERSION, *lengths)
    with pytest.raises(PackageError):
        open_bytes(header + manifest + payload + signatures, trust=building.trust())


@QUICK
@given(st.data())
def test_several_edits_of_an_honest_package(data):
    content = bytearray(HONEST)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 40)))
        content[start:end] = data.draw(st.binary(max_size=40))
    if bytes(content) == HONEST:
        return
    with pytest.raises(PackageError):
        open_bytes(bytes(content), trust=building.trust())


@QUICK
@given(st.binary(max_size=200))
def test_arbitrary_manifest_under_a_good_signature(manifest):
    if len(manifest) < 2:
        manifest = b"{}"
    with pytest.raises(PackageError):
        open_bytes(building.signed(manifest, {"a": b"x"}), trust=building.trust())


@QUICK
@given(st.binary(max_size=300))
def test_arbitrary_signature_block(block):
    found = building.frame()
    lengths = (len(found.manifest), 0, found.payload_size, len(block) + 1)
    header = container.HEADER.pack(container.MAGIC, container.VERSION, *lengths)
    for count in range(5):
        with pytest.raises(PackageError):
            open_bytes(header + found.manifest + building.payload() + bytes([count]) + block, trust=building.trust())


def stored(compression: str, encryption: str) -> bytes:
    manifest, _ = building.parts()
    return canonical_json({**manifest, "payload": {"compression": compression, "encryption": encryption}}).encode()


@QUICK
@given(st.binary(max_size=100), st.integers(0, 3), st.booleans())
def test_arbitrary_recipients_under_a_good_signature(start, count, honest):
    """This includes parts of the right length with the reader's own fingerprint."""
    part = start
    if honest:
        name = bytes.fromhex(IDENTITY.recipient.fingerprint)
        part = bytes([count]) + b"".join((name + start).ljust(1200, b"\x01") for _ in range(count))
    data = building.sealed_parts(
        manifest=stored("none", "hpke-mlkem768-x25519"), recipients=part, payload=bytes(100), by=building.key()
    )
    with pytest.raises((PackageError, EncryptedError)):
        open_bytes(data, trust=building.trust(), identity=IDENTITY)


@QUICK
@given(st.binary(max_size=300), st.sampled_from(["none", "zstd"]), st.booleans())
def test_arbitrary_payload_under_a_good_signature(payload, compression, wrapped):
    """With encryption, the content key is right, but the payload does not open, or opens to something else."""
    encryption = "hpke-mlkem768-x25519" if wrapped else "none"
    manifest = stored(compression, encryption)
    recipients = wrap_key(bytes(32), recipients=[IDENTITY.recipient], manifest=manifest) if wrapped else b""
    payloads = [payload]
    if wrapped:
        payloads.append(b"".join(encrypt_chunks([payload], content_key=bytes(32), manifest=manifest)))
    for each in payloads:
        data = building.sealed_parts(manifest=manifest, recipients=recipients, payload=each, by=building.key())
        with pytest.raises(PackageError):
            open_bytes(data, trust=building.trust(), identity=IDENTITY)


@QUICK
@given(st.binary(max_size=200), st.binary(max_size=60), st.integers(0, 400))
def test_a_frame_edited_anywhere_decompresses_to_what_it_was_or_not_at_all(content, edit, place):
    frame = bytearray(b"".join(compress([content], size=len(content))))
    frame[place : place + len(edit)] = edit
    with contextlib.suppress(PackageError):
        assert len(b"".join(decompress([bytes(frame)], size=len(content)))) == len(content)


@QUICK
@given(JSON, st.sampled_from(["", "base", "adapter", "routing", "training", "privacy", "payload", "members", "name"]))
def test_arbitrary_json_in_a_manifest(value, field):
    manifest, _ = building.parts()
    changed = {**manifest, field: value} if field else value
    with contextlib.suppress(PackageError):
        parse_manifest(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())


@QUICK
@given(JSON)
def test_arbitrary_json_as_adapter_config(value):
    with contextlib.suppress(PackageError):
        read_adapter_config(json.dumps(value).encode())


@QUICK
@given(st.sampled_from(["r", "lora_alpha", "target_modules", "peft_version", "loftq_config", "bias"]), JSON)
def test_arbitrary_values_in_an_adapter_config(key, value):
    with contextlib.suppress(PackageError):
        read_adapter_config(building.adapter_config(**{key: value}))


@QUICK
@given(st.binary(max_size=200))
def test_arbitrary_adapter_config(content):
    with pytest.raises(PackageError):
        read_adapter_config(content)


@QUICK
@given(JSON, st.binary(max_size=64))
def test_arbitrary_json_as_tensor_header(value, data):
    text = json.dumps(value).encode()
    with pytest.raises(PackageError):
        read_tensors(struct.pack("<Q", len(text)) + text + data, member="weights")


@QUICK
@given(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON)
def test_arbitrary_values_in_a_tensor_header(key, value):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], key: value}
    text = json.dumps({"t": entry}).encode()
    with contextlib.suppress(PackageError):
        read_tensors(struct.pack("<Q", len(text)) + text + bytes(8), member="weights")


@QUICK
@given(st.binary(max_size=100))
def test_arbitrary_tensor_file(content):
    with pytest.raises(PackageError):
        read_tensors(content, member="weights")


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "missing", "device"])
def test_what_is_no_regular_file_neither_hangs_nor_opens(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / "p.tgsp"
    server = socket.socket(socket.AF_UNIX)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        server.bind("p.tgsp")
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    try:
        for read in (open_package, verify_package):
            with pytest.raises(UserError, match="cannot read the package") as caught:
                read(path, trust=building.trust())
            assert caught.value.exit_code == 1
    finally:
        server.close()


def test_the_file_is_read_once(tmp_path, monkeypatch):
    """Nothing uses the path again between check and use."""
    path = tmp_path / "p.tgsp"
    path.write_bytes(HONEST)
    opened = []
    real = os.open

    def counting(name, *args, **kwargs):
        if os.fspath(name) == str(path):
            opened.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", counting)
    package = open_package(path, trust=building.trust())
    path.unlink()
    assert package.members["adapter_model.safetensors"] == building.weights()
    assert len(opened) == 1
