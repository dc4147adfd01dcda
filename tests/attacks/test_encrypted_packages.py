"""Encrypted and compressed packages: who can open them, what ciphertext can be moved where, and bombs."""

import base64
import contextlib
import hashlib
import hmac
import re
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.errors import EncryptedError, PackageError, SignatureError
from sealed_experts.packages.recipients import encryption
from sealed_experts.packages.recipients.encryption import CHUNK, TAG, Identity, decrypt_chunks, encrypt_chunks
from sealed_experts.packages.recipients.own_identity import own_identity
from sealed_experts.packages.recipients.recipient_files import (
    load_identity,
    load_recipient,
    save_identity,
    save_recipient,
)
from sealed_experts.packages.tgsp.compression import compress, decompress
from sealed_experts.packages.tgsp.package import open_bytes, verify_manifest, verify_package
from tests.attacks import building
from tests.attacks.building import refuse

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ANNA, BORIS, CLARA = (Identity(bytes([number]) * 96) for number in (1, 2, 3))
KEY, MANIFEST = bytes(range(32)), b'{"a manifest":1}'


def encrypted(*identities: Identity, **changes) -> bytes:
    return building.package(storage={"recipients": [each.recipient for each in identities]}, **changes)


def test_each_recipient_opens_it_and_nobody_else():
    data = encrypted(ANNA, BORIS)
    for identity in (ANNA, BORIS):
        assert open_bytes(data, trust=building.trust(), identity=identity).members == building.parts()[1]
    for identity, match in ((CLARA, "and not for"), (None, "give the private key")):
        with pytest.raises(EncryptedError, match=match) as caught:
            open_bytes(data, trust=building.trust(), identity=identity)
        assert caught.value.exit_code == 1
        assert ANNA.recipient.fingerprint in str(caught.value)


def test_nothing_of_the_members_is_readable_in_it():
    data = encrypted(ANNA)
    for content in building.parts()[1].values():
        for start in range(0, len(content) - 24, 24):
            piece = content[start : start + 24]
            assert piece not in data or piece in building.frame(data).manifest
    assert building.weights()[-32:] in building.package()


def test_the_manifest_of_it_can_be_verified_without_a_key(tmp_path):
    path = tmp_path / "p.tgsp"
    path.write_bytes(encrypted(ANNA))
    report = verify_manifest(path, trust=building.trust())
    assert report.manifest["payload"] == {"compression": "none", "encryption": "hpke-mlkem768-x25519"}
    assert report.members == {}
    assert report.recipients == (ANNA.recipient.fingerprint,)
    with pytest.raises(EncryptedError, match=r"p\.tgsp: it is encrypted for"):
        verify_package(path, trust=building.trust())
    with pytest.raises(SignatureError):
        verify_manifest(path, trust=building.trust(2))


# What is exchanged, under a good signature of the same publisher


def signed(manifest: bytes, recipients: bytes, payload: bytes) -> bytes:
    return building.sealed_parts(manifest=manifest, recipients=recipients, payload=payload, by=building.key())


def refused(data: bytes, match: str) -> None:
    with pytest.raises(PackageError, match=match):
        open_bytes(data, trust=building.trust(), identity=ANNA)


def test_parts_of_two_encrypted_packages_do_not_mix():
    """Each is honest, for the same reader; all combinations are signed anew, so only the encryption tells."""
    first, second = encrypted(ANNA), encrypted(ANNA, settings=building.run(version="1.0.1"))
    ours, theirs = building.frame(first), building.frame(second)
    payloads = {frame.manifest: building.payload(data) for frame, data in ((ours, first), (theirs, second))}
    assert len(set(map(len, payloads.values()))) == 1
    refused(signed(ours.manifest, theirs.recipients, payloads[ours.manifest]), "does not open")
    refused(signed(ours.manifest, ours.recipients, payloads[theirs.manifest]), "chunk 0 .* does not open")
    refused(signed(ours.manifest, theirs.recipients, payloads[theirs.manifest]), "content key .* does not open")
    open_bytes(signed(ours.manifest, ours.recipients, payloads[ours.manifest]), trust=building.trust(), identity=ANNA)


def test_a_key_wrapped_for_one_recipient_does_not_serve_another():
    data = encrypted(ANNA, BORIS)
    frame, wrapped = building.frame(data), encryption.parse_recipients(building.frame(data).recipients)
    names = list(wrapped)
    exchanged = b"\x02" + b"".join(
        bytes.fromhex(name) + wrapped[other] for name, other in zip(names, reversed(names), strict=True)
    )
    refused(signed(frame.manifest, exchanged, building.payload(data)), "does not open")


@pytest.mark.parametrize(
    "alter",
    [
        lambda part: b"",
        lambda part: b"\x00",
        lambda part: b"\x00" + part[1:],
        lambda part: b"\x02" + part[1:],
        lambda part: b"\xff" + part[1:],
        lambda part: part[:-1],
        lambda part: part + b"\0",
        lambda part: b"\x02" + 2 * part[1:],
        lambda part: b"\x01" + bytes(len(part) - 1),
    ],
    ids=["none", "count alone", "count 0", "count 2", "count 255", "cut", "tail", "twice", "zeros"],
)
def test_a_recipients_part_that_no_honest_writer_makes(alter):
    data = encrypted(ANNA)
    frame = building.frame(data)
    with pytest.raises((PackageError, EncryptedError)):
        open_bytes(
            signed(frame.manifest, alter(frame.recipients), building.payload(data)),
            trust=building.trust(),
            identity=ANNA,
        )


def test_recipients_out_of_order():
    data = encrypted(ANNA, BORIS)
    part, entry = building.frame(data).recipients, 32 + encryption.WRAPPED_KEY
    turned = part[:1] + part[1 + entry :] + part[1 : 1 + entry]
    refused(signed(building.frame(data).manifest, turned, building.payload(data)), "sorted by fingerprint")


def test_an_encrypted_payload_that_the_manifest_calls_plain():
    """And the other way round."""
    manifest, _ = building.parts()
    data = encrypted(ANNA)
    refuse(signed(canonical_json(manifest).encode(), b"", building.payload(data)), "sizes sum to")
    refuse(
        signed(building.frame(data).manifest, b"", building.payload(data)),
        "payload.encryption is hpke-mlkem768-x25519, but the package has none",
    )


# Chunks


def chunks(*, plain: bytes, key: bytes = KEY, manifest: bytes = MANIFEST) -> list[bytes]:
    return list(encrypt_chunks([plain[:1000], plain[1000:]], content_key=key, manifest=manifest))


def opened(stored: list[bytes], *, key: bytes = KEY, manifest: bytes = MANIFEST) -> bytes:
    """Cut the joined chunks again as a reader does."""
    joined, size = b"".join(stored), CHUNK + TAG
    pieces = [joined[start : start + size] for start in range(0, len(joined), size)]
    return b"".join(decrypt_chunks(pieces, size=len(joined), content_key=key, manifest=manifest))


@pytest.mark.parametrize("size", [0, 1, 999, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
def test_chunks_of_every_size(size):
    plain = bytes(index % 251 for index in range(size))
    stored = chunks(plain=plain)
    assert len(b"".join(stored)) == size + TAG * max(1, -(-size // CHUNK))
    assert opened(stored) == plain


def test_the_chunks_are_what_the_specification_says():
    """Rebuilt from the specification's words."""
    plain = bytes(CHUNK) + b"the last one"
    bound = b"sealed-experts/tgsp/v1/chunk" + hashlib.sha256(MANIFEST).digest()
    cipher = ChaCha20Poly1305(KEY)
    assert chunks(plain=plain) == [
        cipher.encrypt(bytes(12), bytes(CHUNK), bound),
        cipher.encrypt(bytes(10) + b"\x01\x01", b"the last one", bound),
    ]


@pytest.mark.parametrize(
    "alter",
    [
        lambda stored: stored[:-1],
        lambda stored: stored[:1],
        lambda stored: stored[1:],
        lambda stored: [stored[1], stored[0], *stored[2:]],
        lambda stored: [stored[0], stored[0], *stored[2:]],
        lambda stored: [*stored, stored[-1]],
        lambda stored: [*stored, b"\0" * TAG],
        lambda stored: [*stored[:-1], stored[-1][:-1]],
        lambda stored: [*stored[:-1], stored[-1][TAG:]],
        lambda stored: [bytes([stored[0][0] ^ 1]) + stored[0][1:], *stored[1:]],
        lambda stored: [],
    ],
    ids=[
        *("last one cut off", "first one alone", "first one cut off", "exchanged", "repeated", "last one twice"),
        *("a tag more", "a byte less", "shorter last one", "a bit", "nothing"),
    ],
)
def test_chunks_cut_off_exchanged_or_repeated(alter):
    stored = chunks(plain=bytes(3 * CHUNK + 100))
    assert opened(stored) == bytes(3 * CHUNK + 100)
    with pytest.raises(PackageError):
        opened(alter(stored))


def test_an_empty_chunk_at_the_end():
    """It opens, but no writer makes it: one content would have two forms."""
    cipher, bound = ChaCha20Poly1305(KEY), b"sealed-experts/tgsp/v1/chunk" + hashlib.sha256(MANIFEST).digest()
    full, empty = (
        cipher.encrypt(nonce, bytes(size), bound) for nonce, size in ((bytes(12), CHUNK), (bytes(10) + b"\x01\x01", 0))
    )
    with pytest.raises(PackageError, match="has no content"):
        opened([full, empty])


def test_chunks_of_another_package_or_key():
    stored = chunks(plain=b"x")
    for changes in ({"key": bytes(32)}, {"manifest": b"{}"}):
        with pytest.raises(PackageError, match="chunk 0"):
            opened(stored, **changes)


# The key encapsulation, by other code


def test_the_wrapped_key_is_what_the_specification_says():
    """X-Wing's combiner and RFC 9180's key schedule written out here over the two halves' own operations."""
    part = encryption.wrap_key(KEY, recipients=[ANNA.recipient], manifest=MANIFEST)
    name, wrapped = part[1:33], part[33:]
    assert name.hex() == hashlib.sha256(ANNA.recipient.raw).hexdigest()
    encapsulated, sealed = wrapped[:1120], wrapped[1120:]
    lattice = MLKEM768PrivateKey.from_seed_bytes(ANNA.raw[:64])
    curve = X25519PrivateKey.from_private_bytes(ANNA.raw[64:])
    shared = hashlib.sha3_256(
        lattice.decapsulate(encapsulated[:1088])
        + curve.exchange(X25519PublicKey.from_public_bytes(encapsulated[1088:]))
        + encapsulated[1088:]
        + curve.public_key().public_bytes_raw()
        + b"\\.//^\\"
    ).digest()
    info = b"sealed-experts/tgsp/v1/key" + name + hashlib.sha256(MANIFEST).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010003")  # the KEM, HKDF-SHA256, ChaCha20-Poly1305

    def extract(salt: bytes, label: bytes, value: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + value, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, labelled + b"\x01", "sha256")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
    assert ChaCha20Poly1305(key).decrypt(nonce, sealed, b"") == KEY


def test_raw_keys_are_the_two_halves():
    raw = ANNA.recipient.raw
    assert raw[:1184] == MLKEM768PrivateKey.from_seed_bytes(ANNA.raw[:64]).public_key().public_bytes_raw()
    assert raw[1184:] == X25519PrivateKey.from_private_bytes(ANNA.raw[64:]).public_key().public_bytes_raw()
    assert ANNA.raw.hex() not in repr(ANNA)
    for wrong in (b"", raw[:-1], raw + b"\0", b"\xff" * len(raw)):
        with pytest.raises(UserError, match="not a recipient's public key"):
            encryption.Recipient(wrong)
    for wrong in (b"", ANNA.raw[:-1], ANNA.raw + b"\0"):
        with pytest.raises(UserError, match="not a recipient's private key"):
            Identity(wrong)


def test_a_recipient_whose_curve_key_is_of_small_order(tmp_path):
    """Whoever gave it to us could read nothing more than we mean it to, but such a key is none.

    It was read without a word, and sealing to it ended in a ValueError's traceback.
    """
    public = tmp_path / "weak.pub"
    save_recipient(public, ANNA.recipient)
    _, own = ANNA.recipient.halves()
    before = own.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for point in (bytes(32), bytes([1]) + bytes(31), bytes([0xEC]) + b"\xff" * 30 + b"\x7f"):
        with pytest.raises(UserError, match="not a recipient's public key"):
            encryption.Recipient(ANNA.recipient.raw[:1184] + point)
        weak = X25519PublicKey.from_public_bytes(point).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "bent.pub").write_bytes(public.read_bytes().replace(before, weak))
        with pytest.raises(UserError, match=r"bent\.pub: this is not a recipient's public key"):
            load_recipient(tmp_path / "bent.pub")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_keys_as_files(passphrase, tmp_path):
    identity = encryption.generate_identity()
    private, public = tmp_path / "me.key", tmp_path / "me.pub"
    save_identity(private, identity, passphrase=passphrase)
    save_recipient(public, identity.recipient)
    assert private.stat().st_mode & 0o777 == 0o600
    assert load_identity(private, passphrase=passphrase) == identity
    assert load_recipient(public) == identity.recipient
    assert private.read_bytes().count(b"BEGIN ENCRYPTED") == (0 if passphrase is None else 2)
    with pytest.raises(UserError, match="exists"):
        save_identity(private, identity)
    if passphrase:
        with pytest.raises(UserError, match="has a passphrase: set SEALED_EXPERTS_PASSPHRASE"):
            load_identity(private)
        with pytest.raises(UserError, match="does not open"):
            load_identity(private, passphrase=b"wrong")
    for wrong, path in ((load_recipient, private), (load_identity, public)):
        private.chmod(0o600)
        public.chmod(0o600)
        with pytest.raises(UserError):
            wrong(path)
    private.chmod(0o640)
    with pytest.raises(UserError, match="other users can use"):
        load_identity(private, passphrase=passphrase)


def test_a_passphrase_is_expensive_to_guess(tmp_path):
    """As cryptography writes it, by 2,048 rounds of PBKDF2, a graphics card would try millions a second."""
    save_identity(tmp_path / "me.key", ANNA, passphrase=b"correct horse")
    scrypt = bytes.fromhex("06092b06010401da47040b")  # RFC 7914, section 7: 1.3.6.1.4.1.11591.4.11
    blocks = re.findall(rb"-----\n([A-Za-z0-9+/=\n]+)-----END", (tmp_path / "me.key").read_bytes())
    assert [scrypt in base64.b64decode(block) for block in blocks] == [True, True]


def test_an_identity_with_a_passphrase_is_opened_by_the_environments(tmp_path, monkeypatch):
    save_identity(tmp_path / "me.key", ANNA, passphrase=b"correct horse")
    monkeypatch.setenv("SEALED_EXPERTS_PASSPHRASE", "correct horse")
    monkeypatch.setenv("SEALED_EXPERTS_IDENTITY", str(tmp_path / "me.key"))
    assert own_identity() == load_identity(tmp_path / "me.key") == ANNA
    monkeypatch.setenv("SEALED_EXPERTS_PASSPHRASE", "wrong")
    with pytest.raises(UserError, match="does not open"):
        own_identity()
    monkeypatch.delenv("SEALED_EXPERTS_PASSPHRASE")
    with pytest.raises(UserError, match="has a passphrase: set SEALED_EXPERTS_PASSPHRASE"):
        own_identity()


@pytest.mark.parametrize("alter", [lambda text: text[: len(text) // 2], lambda text: text * 2, lambda text: b"x"])
def test_damaged_key_files(alter, tmp_path):
    private, public = tmp_path / "me.key", tmp_path / "me.pub"
    save_identity(private, ANNA)
    save_recipient(public, ANNA.recipient)
    for path, load in ((private, load_identity), (public, load_recipient)):
        path.write_bytes(alter(path.read_bytes()))
        with pytest.raises(UserError):
            load(path)


# Compression


def stored_as(frame: bytes) -> bytes:
    """Sign a manifest that says zstd over any payload."""
    manifest, _ = building.parts()
    manifest["payload"]["compression"] = "zstd"
    return building.sealed_parts(manifest=canonical_json(manifest).encode(), payload=frame, by=building.key())


def total() -> int:
    return sum(entry["size"] for entry in building.parts()[0]["members"])


def test_compression_goes_both_ways_and_helps():
    plain = building.payload() * 300
    frame = b"".join(compress([plain[:70_000], plain[70_000:]], size=len(plain)))
    assert len(frame) < len(plain) / 10
    assert zstd.decompress(frame) == plain
    assert b"".join(decompress([frame[:50], frame[50:]], size=len(plain))) == plain
    assert b"".join(compress([plain], size=len(plain))) == frame


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (b"", "decompresses to 0 bytes"),
        (b"no frame at all", "not a readable Zstandard frame"),
        (zstd.compress(b""), "decompresses to 0 bytes"),
        (zstd.compress(bytes(100)), "decompresses to 100 bytes"),
        (zstd.compress(bytes(50_000_000)), "decompresses to more than"),
        (zstd.compress(building.payload())[:-1], "decompresses to"),
        (zstd.compress(building.payload()) + b"\0", "after its Zstandard frame"),
        (zstd.compress(building.payload()) + zstd.compress(b"more"), "after its Zstandard frame"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd.compress(building.payload()), "after its Zstandard frame"),
        (zstd.compress(building.payload(), options={zstd.CompressionParameter.checksum_flag: 1})[:-1] + b"\0", "read"),
    ],
    ids=[
        *("empty", "no frame", "empty frame", "too little", "zip bomb", "cut", "a byte more", "two frames"),
        *("skippable frame", "wrong checksum"),
    ],
)
def test_a_compressed_payload_that_no_honest_writer_makes(frame, match):
    refuse(stored_as(frame), match)
    open_bytes(stored_as(zstd.compress(building.payload())), trust=building.trust())


def test_a_zip_bomb_is_stopped_at_the_size_that_was_stated():
    """200 MB of zeros behind 18 kB: no more than a block beyond the stated size is ever made."""
    bomb, seen = zstd.compress(bytes(200_000_000)), 0
    assert len(bomb) < 20_000
    blocks = decompress([bomb], size=1000)
    with contextlib.suppress(PackageError):
        while True:
            seen += len(next(blocks))
    assert seen <= 1000


def test_a_window_that_needs_much_memory_is_refused():
    options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(bytes(1000)) + compressor.flush()
    with pytest.raises(PackageError, match="not a readable Zstandard frame"):
        list(decompress([frame], size=1000))


def test_both_at_once():
    data = building.package(storage={"recipients": [ANNA.recipient], "compression": "zstd"})
    package = open_bytes(data, trust=building.trust(), identity=ANNA)
    assert package.members == building.parts()[1]
    assert package.manifest["payload"] == {"compression": "zstd", "encryption": "hpke-mlkem768-x25519"}


def test_arguments_that_nobody_can_mean():
    for storage, match in (
        ({"compression": "gzip"}, "compression 'gzip' is unknown"),
        ({"signatures": ["ml-dsa-65"]}, "can sign with ed25519"),
        ({"signatures": []}, "cannot sign with no algorithm"),
        ({"recipients": [Identity(number.to_bytes(96, "big")).recipient for number in range(51)]}, "1 to 50"),
    ):
        with pytest.raises(UserError, match=match):
            building.package(storage=storage)
