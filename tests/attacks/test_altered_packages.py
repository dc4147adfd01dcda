"""Whatever is done to the bytes of a package, it is refused, and with our own error."""

import functools
import hashlib
import struct

import pytest
from tests.attacks import building
from tests.attacks.building import assembled

from sealed_experts.sealing import container
from sealed_experts.sealing.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.sealing.package import open_bytes, open_package
from sealed_experts.sealing.trust import TrustStore, fingerprint


@functools.cache
def honest() -> bytes:
    return building.package()


def test_the_honest_package_opens():
    package = open_bytes(honest(), trust=building.trust())
    assert package.manifest["name"] == "tiny_expert"
    assert package.publisher == building.key().public.fingerprint
    assert set(package.members) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "privacy_receipt.json",
    }


def test_every_byte_flipped_is_refused():
    trust, data = building.trust(), bytearray(honest())
    for position in range(len(data)):
        for mask in (1 << position % 8, 0xFF):
            data[position] ^= mask
            with pytest.raises(PackageError):
                open_bytes(bytes(data), trust=trust)
            data[position] ^= mask
    open_bytes(bytes(data), trust=trust)


def test_every_truncation_is_refused():
    trust, data = building.trust(), honest()
    for length in range(len(data)):
        with pytest.raises(PackageError):
            open_bytes(data[:length], trust=trust)


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"x" * 64, None], ids=["zero", "newline", "text", "itself"])
def test_appended_bytes_are_refused(tail):
    with pytest.raises(PackageError, match="followed by foreign bytes"):
        open_bytes(honest() + (honest() if tail is None else tail), trust=building.trust())


def test_prepended_bytes_are_refused():
    with pytest.raises(PackageError, match="not a TGSP package"):
        open_bytes(b"\0" + honest(), trust=building.trust())


def test_a_file_that_was_cut_or_has_grown_is_refused(tmp_path):
    for name, content in (("cut", honest()[:-1]), ("grown", honest() + b"\0")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PackageError, match=f"{name}: the file is"):
            open_package(tmp_path / name, trust=building.trust())


def test_parts_swapped_between_two_packages_are_refused():
    """Both packages are by the same publisher: only the signature's reach over all parts tells them apart."""
    other_weights = {name: array + 1 for name, array in building.tensors().items()}
    first = container.parse(honest())
    second = container.parse(building.package(adapter_weights=building.weights(other_weights)))
    assert len(first.payload) == len(second.payload)
    for part in ("manifest", "payload", "signatures"):
        mixed = {name: getattr(first, name) for name in ("manifest", "payload", "signatures")}
        mixed[part] = getattr(second, part)
        with pytest.raises(SignatureError):
            open_bytes(assembled(**mixed), trust=building.trust())
    assert assembled(manifest=first.manifest, payload=first.payload, signatures=first.signatures) == honest()


def test_a_member_swapped_between_two_packages_is_refused():
    first = container.parse(honest())
    second = container.parse(building.package(settings=building.run(version="1.0.1")))
    readme = len(building.parts()[1]["README.md"])
    payload = bytes(second.payload[:readme]) + bytes(first.payload[readme:])
    assert payload != first.payload
    assert len(payload) == len(first.payload)
    with pytest.raises(SignatureError):
        open_bytes(
            assembled(manifest=first.manifest, payload=payload, signatures=first.signatures), trust=building.trust()
        )


def test_an_untrusted_key_is_refused():
    with pytest.raises(SignatureError, match="not trusted"):
        open_bytes(building.package(2), trust=building.trust(1))
    with pytest.raises(SignatureError, match="not trusted"):
        open_bytes(honest(), trust=TrustStore([]))


def test_a_foreign_key_that_claims_the_trusted_keys_place_is_refused():
    """The package carries the trusted public key but a signature of another one, or the other way round."""
    ours, theirs = container.parse(honest()), container.parse(building.package(2))
    for public_key, value in (
        (ours.signatures[0].public_key, theirs.signatures[0].value),
        (theirs.signatures[0].public_key, ours.signatures[0].value),
    ):
        forged = container.Signature(algorithm="ed25519", public_key=public_key, value=value)
        with pytest.raises(SignatureError):
            open_bytes(
                assembled(manifest=ours.manifest, payload=ours.payload, signatures=(forged,)), trust=building.trust()
            )


@pytest.mark.parametrize("algorithm", ["none", "", "Ed25519", "ed25519 ", "ml-dsa-65", "hmac"])
def test_another_algorithm_label_is_refused(algorithm):
    frame = container.parse(honest())
    relabelled = container.Signature(
        algorithm=algorithm, public_key=frame.signatures[0].public_key, value=frame.signatures[0].value
    )
    with pytest.raises(SignatureError, match="exactly one"):
        open_bytes(
            assembled(manifest=frame.manifest, payload=frame.payload, signatures=(relabelled,)), trust=building.trust()
        )


def test_a_second_signature_added_is_refused():
    """The signers are part of what is signed: one can be neither added nor taken away."""
    frame, other = container.parse(honest()), container.parse(building.package(2))
    with pytest.raises(SignatureError):
        open_bytes(
            assembled(
                manifest=frame.manifest, payload=frame.payload, signatures=(*frame.signatures, *other.signatures)
            ),
            trust=building.trust(),
        )


def test_a_stripped_second_signature_is_refused():
    key, frame = building.key(), container.parse(honest())
    signers = (("ed25519", key.public.raw), ("ed25519", building.key(2).public.raw))
    message = container.signed_bytes(manifest=frame.manifest, recipients=b"", payload=frame.payload, signers=signers)
    stripped = container.Signature(algorithm="ed25519", public_key=key.public.raw, value=key.sign(message))
    with pytest.raises(SignatureError, match="does not match"):
        open_bytes(
            assembled(manifest=frame.manifest, payload=frame.payload, signatures=(stripped,)), trust=building.trust()
        )


@pytest.mark.parametrize("version", [0, 2, 0xFFFF])
def test_another_version_is_refused_as_incompatible(version):
    data = honest()[:8] + struct.pack(">H", version) + honest()[10:]
    with pytest.raises(IncompatibleError, match=f"version {version}") as caught:
        open_bytes(data, trust=building.trust())
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("field", "value"), [(2, 2**32 - 1), (2, 0), (3, 2**32 - 1), (4, 2**64 - 1), (5, 2**32 - 1), (5, 0)]
)
def test_lengths_beyond_their_limits_are_refused_before_anything_is_read(field, value, tmp_path):
    fields = list(container.HEADER.unpack(honest()[: container.HEADER.size]))
    fields[field] = value
    path = tmp_path / "bomb.tgsp"
    path.write_bytes(container.HEADER.pack(*fields) + honest()[container.HEADER.size :])
    with pytest.raises(PackageError, match="the format allows"):
        open_package(path, trust=building.trust())


def test_exit_codes():
    assert (SignatureError.exit_code, PackageError.exit_code, IncompatibleError.exit_code) == (5, 11, 4)


def test_the_signed_message_is_what_the_specification_says():
    """Rebuilt here from the specification's words, with other code."""
    frame, raw = container.parse(honest()), building.key().public.raw
    expected = (
        b"sealed-experts/tgsp/v1"
        + b"\x01"
        + b"\x07ed25519"
        + bytes.fromhex(fingerprint(raw))
        + hashlib.sha256(frame.manifest).digest()
        + hashlib.sha256(b"").digest()
        + struct.pack(">Q", len(frame.payload))
        + hashlib.sha256(frame.payload).digest()
    )
    assert expected == container.signed_bytes(
        manifest=frame.manifest, recipients=b"", payload=frame.payload, signers=(("ed25519", raw),)
    )
