"""Whatever is done to the bytes of a package, it is refused, and with our own error."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import struct

import pytest

from sealed_experts.errors import UserError
from sealed_experts.packages import source
from sealed_experts.packages.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.packages.keys.signing import fingerprint
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.tgsp import container
from sealed_experts.packages.tgsp.package import open_bytes, open_package, verify_package
from tests.attacks import building
from tests.attacks.building import assembled

KINDS = ("one signature", "two signatures", "compressed", "encrypted")
IDENTITY = Identity(bytes(range(96)))


@functools.cache
def honest(kind: str = "one signature") -> bytes:
    """Return a small package of a kind."""
    if kind == "two signatures":
        return building.package(by=building.key(second=True))
    if kind == "compressed":
        return building.package(storage={"compression": "zstd"})
    if kind == "encrypted":
        return building.package(storage={"recipients": [IDENTITY.recipient]})
    return building.package()


def trust_of(kind: str) -> TrustStore:
    return TrustStore([building.key(second=kind == "two signatures").public])


def open_kind(data: bytes, kind: str):
    return open_bytes(data, trust=trust_of(kind), identity=IDENTITY)


@pytest.mark.parametrize("kind", KINDS)
def test_the_honest_package_opens(kind, tmp_path):
    package = open_kind(honest(kind), kind)
    assert package.manifest["name"] == "tiny_expert"
    assert package.publisher == building.key().public.fingerprint
    assert package.members == building.parts()[1]
    assert package.digest == hashlib.sha256(honest(kind)).hexdigest()
    (tmp_path / "p.tgsp").write_bytes(honest(kind))
    report = verify_package(tmp_path / "p.tgsp", trust=trust_of(kind), identity=IDENTITY, digest=True)
    expected = {**vars(package), "members": {k: v for k, v in package.members.items() if k != building.WEIGHTS}}
    assert vars(report) == expected
    both = ("ed25519", "ml-dsa-65")
    assert report.signatures == (both if kind == "two signatures" else both[:1])
    assert report.recipients == ((IDENTITY.recipient.fingerprint,) if kind == "encrypted" else ())


def places(data: bytes, sweep: str) -> list[int]:
    """Return every place of header, manifest, recipients and signatures, and some or all of the payload."""
    frame = building.frame(data)
    payload = range(frame.payload_offset, frame.payload_offset + frame.payload_size)
    return building.flips(set(range(len(data))) - set(payload), payload, sweep=sweep)


@building.SWEEPS
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_flipped_is_refused(kind, sweep):
    data = bytearray(honest(kind))
    for position in places(honest(kind), sweep):
        for mask in (1 << position % 8, 0xFF)[: 2 if kind == KINDS[0] else 1]:
            data[position] ^= mask
            with pytest.raises(PackageError):
                open_kind(bytes(data), kind)
            data[position] ^= mask
    open_kind(bytes(data), kind)


@building.SWEEPS
def test_every_byte_flipped_in_a_file_is_refused(sweep, tmp_path):
    path, data = tmp_path / "p.tgsp", honest()
    path.write_bytes(data)
    with open(path, "r+b", buffering=0) as stream:
        for position in places(data, sweep):
            os.pwrite(stream.fileno(), bytes([data[position] ^ 0x10]), position)
            with pytest.raises(PackageError, match=r"p\.tgsp: "):
                verify_package(path, trust=building.trust())
            os.pwrite(stream.fileno(), data[position : position + 1], position)
    verify_package(path, trust=building.trust())


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused(kind):
    for length in range(len(honest(kind))):
        with pytest.raises(PackageError):
            open_kind(honest(kind)[:length], kind)


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"x" * 64, None], ids=["zero", "newline", "text", "itself"])
def test_appended_bytes_are_refused(tail):
    with pytest.raises(PackageError, match="followed by foreign bytes"):
        open_bytes(honest() + (honest() if tail is None else tail), trust=building.trust())


def test_prepended_bytes_are_refused():
    with pytest.raises(PackageError, match="not a TGSP package"):
        open_bytes(b"\0" + honest(), trust=building.trust())


@pytest.mark.parametrize("read", [open_package, verify_package])
def test_a_file_that_was_cut_or_has_grown_is_refused(read, tmp_path):
    for name, content in (("cut", honest()[:-1]), ("grown", honest() + b"\0")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PackageError, match=f"{name}: the file is"):
            read(tmp_path / name, trust=building.trust())


# What is exchanged between packages


def test_parts_swapped_between_two_packages_are_refused():
    """Both packages are by the same publisher: only the signature's reach over all parts tells them apart."""
    other_weights = {name: array + 1 for name, array in building.tensors().items()}
    other = building.package(adapter_weights=building.weights(other_weights))
    pairs = []
    for data in (honest(), other):
        frame = building.frame(data)
        pairs.append({"manifest": frame.manifest, "payload": building.payload(data), "signatures": frame.signatures})
    first, second = pairs
    assert len(first["payload"]) == len(second["payload"])
    for part in first:
        with pytest.raises(SignatureError):
            open_bytes(assembled(**{**first, part: second[part]}), trust=building.trust())
    assert assembled(**first) == honest()


def test_a_member_swapped_between_two_packages_is_refused():
    first, second = building.payload(), building.payload(building.package(settings=building.run(version="1.0.1")))
    weights = len(building.parts()[1][building.WEIGHTS])
    mixed = first[:weights] + second[weights:]
    assert mixed != first
    assert len(mixed) == len(first)
    frame = building.frame()
    with pytest.raises(SignatureError):
        open_bytes(
            assembled(manifest=frame.manifest, payload=mixed, signatures=frame.signatures), trust=building.trust()
        )


# Signatures


def test_an_untrusted_key_is_refused():
    """It carries a good signature under the key that it carries itself."""
    with pytest.raises(SignatureError, match="not trusted"):
        open_bytes(building.package(by=building.key(2)), trust=building.trust(1))
    with pytest.raises(SignatureError, match="not trusted"):
        open_bytes(honest(), trust=TrustStore([]))


def test_a_foreign_key_that_claims_the_trusted_keys_place_is_refused():
    """The package carries the trusted public key but a signature of another one, or the other way round."""
    ours, theirs = building.frame(honest()), building.frame(building.package(by=building.key(2)))
    for public_key, value in (
        (ours.signatures[0].public_key, theirs.signatures[0].value),
        (theirs.signatures[0].public_key, ours.signatures[0].value),
    ):
        forged = container.Signature(algorithm="ed25519", public_key=public_key, value=value)
        with pytest.raises(SignatureError):
            open_bytes(
                assembled(manifest=ours.manifest, payload=building.payload(), signatures=(forged,)),
                trust=building.trust(),
            )


@pytest.mark.parametrize("algorithm", ["none", "", "Ed25519", "ed25519 ", "ml-dsa-65", "ml-dsa-44", "hmac"])
def test_another_algorithm_label_is_refused(algorithm):
    frame = building.frame()
    relabelled = container.Signature(
        algorithm=algorithm, public_key=frame.signatures[0].public_key, value=frame.signatures[0].value
    )
    with pytest.raises(SignatureError):
        open_bytes(
            assembled(manifest=frame.manifest, payload=building.payload(), signatures=(relabelled,)),
            trust=building.trust(),
        )


def test_a_second_signature_added_is_refused():
    """The signers are part of what is signed: one can be neither added nor taken away."""
    frame = building.frame()
    other = building.frame(building.package(by=building.key(second=True))).signatures[1]
    for store in (building.trust(), trust_of("two signatures")):
        with pytest.raises(SignatureError):
            open_bytes(
                assembled(manifest=frame.manifest, payload=building.payload(), signatures=(*frame.signatures, other)),
                trust=store,
            )


@pytest.mark.parametrize("kept", [0, 1], ids=["Ed25519 alone", "ML-DSA-65 alone"])
def test_a_stripped_second_signature_is_refused(kept):
    """By the trust store, which knows both keys, and where it knows one alone, by the other signature's message."""
    frame = building.frame(honest("two signatures"))
    data = assembled(manifest=frame.manifest, payload=building.payload(), signatures=(frame.signatures[kept],))
    assert data != honest("two signatures")
    with pytest.raises(SignatureError, match="signature of key1 is missing"):
        open_bytes(data, trust=trust_of("two signatures"))
    if kept == 0:
        with pytest.raises(SignatureError, match="does not match"):
            open_bytes(data, trust=building.trust())


def test_a_downgrade_to_one_algorithm_is_refused_where_two_are_known():
    """The publisher's Ed25519 key alone has signed: what a thief of that key could do."""
    with pytest.raises(SignatureError, match="ml-dsa-65 signature of key1 is missing"):
        open_bytes(honest(), trust=trust_of("two signatures"))


def test_two_good_signatures_of_two_publishers_are_refused():
    first, second = building.key(1, second=True), building.key(2, second=True)
    signers = [("ed25519", first.public.keys[0].raw), ("ml-dsa-65", second.public.keys[1].raw)]
    frame = building.frame()
    message = container.signed_bytes(
        manifest=frame.manifest,
        recipients=b"",
        payload_size=frame.payload_size,
        payload_digest=hashlib.sha256(building.payload()).digest(),
        signers=signers,
    )
    signatures = tuple(
        container.Signature(algorithm=algorithm, public_key=raw, value=key.sign(message, algorithm=algorithm))
        for (algorithm, raw), key in zip(signers, (first, second), strict=True)
    )
    data = assembled(manifest=frame.manifest, payload=building.payload(), signatures=signatures)
    with pytest.raises(SignatureError, match="key1 and key2"):
        open_bytes(data, trust=TrustStore([first.public, second.public]))


@pytest.mark.parametrize("order", [(1, 0), (0, 0), (0, 1, 1)], ids=["reversed", "twice", "three"])
def test_signatures_out_of_order_or_twice_are_refused(order):
    frame = building.frame(honest("two signatures"))
    signatures = tuple(frame.signatures[index] for index in order)
    with pytest.raises(PackageError, match="must be sorted, each once"):
        open_bytes(
            assembled(manifest=frame.manifest, payload=building.payload(), signatures=signatures),
            trust=trust_of("two signatures"),
        )


def test_an_ed25519_signature_with_the_groups_order_added_is_refused():
    """The same equation holds for it: a verifier that does not bound S lets anyone change a signature's bytes."""
    order = 2**252 + 27742317777372353535851937790883648493
    frame = building.frame()
    value = frame.signatures[0].value
    larger = (int.from_bytes(value[32:], "little") + order).to_bytes(32, "little")
    forged = container.Signature(
        algorithm="ed25519", public_key=frame.signatures[0].public_key, value=value[:32] + larger
    )
    with pytest.raises(SignatureError, match="does not match"):
        open_bytes(
            assembled(manifest=frame.manifest, payload=building.payload(), signatures=(forged,)), trust=building.trust()
        )


@pytest.mark.parametrize("index", [0, 1], ids=["Ed25519", "ML-DSA-65"])
@pytest.mark.parametrize("part", ["public_key", "value"])
@pytest.mark.parametrize("alter", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: raw + b"\0"])
def test_keys_and_signatures_of_another_length_are_refused(index, part, alter):
    frame = building.frame(honest("two signatures"))
    signatures = list(frame.signatures)
    signatures[index] = dataclasses.replace(signatures[index], **{part: alter(getattr(signatures[index], part))})
    data = assembled(manifest=frame.manifest, payload=building.payload(), signatures=tuple(signatures))
    with pytest.raises(SignatureError):
        open_bytes(data, trust=trust_of("two signatures"))


# Framing


@pytest.mark.parametrize("version", [0, 2, 0xFFFF])
def test_another_version_is_refused_as_incompatible(version):
    data = honest()[:8] + struct.pack(">H", version) + honest()[10:]
    with pytest.raises(IncompatibleError, match=f"version {version}") as caught:
        open_bytes(data, trust=building.trust())
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("read", [open_package, verify_package])
@pytest.mark.parametrize(
    ("field", "value"), [(2, 2**32 - 1), (2, 0), (3, 2**32 - 1), (4, 2**64 - 1), (5, 2**32 - 1), (5, 0)]
)
def test_lengths_beyond_their_limits_are_refused_before_anything_is_read(field, value, read, tmp_path):
    fields = list(container.HEADER.unpack(honest()[: container.HEADER.size]))
    fields[field] = value
    path = tmp_path / "bomb.tgsp"
    path.write_bytes(container.HEADER.pack(*fields) + honest()[container.HEADER.size :])
    with pytest.raises(PackageError, match="the format allows"):
        read(path, trust=building.trust())


@pytest.mark.parametrize("read", [open_package, verify_package])
def test_a_length_that_the_file_does_not_have_is_refused_before_anything_is_read(read, tmp_path):
    fields = list(container.HEADER.unpack(honest()[: container.HEADER.size]))
    fields[4] = container.MAX_PAYLOAD
    path = tmp_path / "bomb.tgsp"
    path.write_bytes(container.HEADER.pack(*fields) + honest()[container.HEADER.size :])
    with pytest.raises(PackageError, match="cut short"):
        read(path, trust=building.trust())


def test_exit_codes():
    assert (SignatureError.exit_code, PackageError.exit_code, IncompatibleError.exit_code) == (5, 11, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_signed_message_is_what_the_specification_says(kind):
    """Rebuilt here from the specification's words, with other code."""
    frame, payload = building.frame(honest(kind)), building.payload(honest(kind))
    signers = [("ed25519", building.key().public.raw)]
    if kind == "two signatures":
        signers.append(("ml-dsa-65", building.key(second=True).public.keys[1].raw))
    expected = (
        b"sealed-experts/tgsp/v1"
        + bytes([len(signers)])
        + b"".join(bytes([len(name)]) + name.encode() + bytes.fromhex(fingerprint(raw)) for name, raw in signers)
        + hashlib.sha256(frame.manifest).digest()
        + hashlib.sha256(frame.recipients).digest()
        + struct.pack(">Q", len(payload))
        + hashlib.sha256(payload).digest()
    )
    assert expected == container.signed_bytes(
        manifest=frame.manifest,
        recipients=frame.recipients,
        payload_size=len(payload),
        payload_digest=hashlib.sha256(payload).digest(),
        signers=signers,
    )
    for (_, raw), signature in zip(signers, frame.signatures, strict=True):
        assert signature.public_key == raw


# While it is read


@pytest.mark.parametrize("when", ["hashed", "checked"])
def test_a_file_that_changes_while_it_is_verified_is_refused(when, tmp_path, monkeypatch):
    """A writer waits for the signature's check to pass, and then puts other weights into the same file."""
    from sealed_experts.packages.tgsp import examination

    path = tmp_path / "p.tgsp"
    path.write_bytes(honest())
    name = "check_signatures" if when == "hashed" else "check_content"
    real = getattr(examination, name)

    def then_write(*args, **kwargs):
        result = real(*args, **kwargs)
        with open(path, "r+b", buffering=0) as stream:
            os.pwrite(stream.fileno(), b"\xff\xff\x7f\x7f", building.frame().payload_offset + 1000)
        return result

    monkeypatch.setattr(source, "take_lease", lambda descriptor: False)  # which this process would wait for itself
    monkeypatch.setattr(examination, name, then_write)
    with pytest.raises(PackageError):
        verify_package(path, trust=building.trust())


def test_a_file_that_is_cut_while_it_is_verified_is_refused(tmp_path, monkeypatch):
    from sealed_experts.packages.tgsp import examination

    path = tmp_path / "p.tgsp"
    path.write_bytes(honest())
    # Before the patch: to seal a package takes the patched function too.
    real, end = examination.check_signatures, building.frame().payload_offset + 100

    def then_cut(*args, **kwargs):
        real(*args, **kwargs)
        os.truncate(path, end)

    monkeypatch.setattr(source, "take_lease", lambda descriptor: False)  # which this process would wait for itself
    monkeypatch.setattr(examination, "check_signatures", then_cut)
    with pytest.raises(PackageError, match="was cut while it was read"):
        verify_package(path, trust=building.trust())


def test_nothing_is_parsed_before_the_signature_is_checked(monkeypatch):
    """Every parser that comes later is made to fail the test."""
    from sealed_experts.packages.recipients import encryption
    from sealed_experts.packages.tgsp import examination, payload

    whole = {kind: bytearray(honest(kind)) for kind in KINDS}  # sealing verifies, so it needs those parsers

    def forbidden(*args, **kwargs):
        raise AssertionError("called before the signature was checked")

    for module, name in (
        *((examination, each) for each in ("parse_manifest", "unwrap_key", "check_content", "plain_blocks")),
        *((payload, each) for each in ("decompress", "decrypt_chunks")),
        (encryption, "parse_recipients"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    for kind, data in whole.items():
        for position in (30, 60, building.frame(bytes(data)).payload_offset, len(data) - 1):
            data[position] ^= 1
            with contextlib.suppress(UserError):
                open_kind(bytes(data), kind)
            data[position] ^= 1
        with pytest.raises(AssertionError):
            open_kind(bytes(data), kind)
