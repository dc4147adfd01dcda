"""Whatever is done to the bytes of an `.expert` file, it is refused, and with our own error."""

import datetime
import functools
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping

import pytest

from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.expert import plain_gzip, plain_tar
from sealed_experts.packages.expert.container import open_expert, open_expert_bytes
from sealed_experts.packages.keys.policy import Policy
from sealed_experts.packages.keys.publisher import PublicKey, Publisher
from sealed_experts.packages.keys.trust import TrustStore
from tests.attacks import building, expert_building
from tests.attacks.expert_building import converted, honest, packed, refuse, signed, unpacked, zipped


def changed(field: str, value, **members) -> dict[str, bytes]:
    """Return the members of an honest file, with one field of `integrity` changed and not signed again."""
    found = unpacked(honest())
    manifest = json.loads(found["manifest.json"])
    manifest["integrity"][field] = value
    return {**found, "manifest.json": canonical_json(manifest).encode(), **members}


def test_the_honest_file_opens():
    package = open_expert_bytes(honest(), trust=building.trust())
    manifest, members = building.parts()
    assert package.members == members
    assert package.manifest == manifest
    assert package.publisher == building.key().public.fingerprint
    assert package.digest == hashlib.sha256(honest()).hexdigest()
    assert package.size == len(honest())


def payload_places() -> list[int]:
    """Return the places of the members that are neither the manifest nor the signature, and of the zeros at the end."""
    data, places = honest(), set()
    for name, content in unpacked(data).items():
        start = data.index(content)
        if name not in ("manifest.json", "signature.sig"):
            places |= set(range(start, start + len(content)))
    return [*sorted(places), *range(len(data[:-8].rstrip(b"\0")), len(data) - 8)]


@building.SWEEPS
def test_every_byte_flipped_is_refused(sweep):
    trust, data, payload = building.trust(), bytearray(honest()), payload_places()
    for position in building.flips(set(range(len(data))) - set(payload), payload, sweep=sweep):
        data[position] ^= 1 << position % 8
        with pytest.raises(PackageError):
            open_expert_bytes(bytes(data), trust=trust)
        data[position] ^= 1 << position % 8
    open_expert_bytes(bytes(data), trust=trust)


def test_every_bit_of_what_no_member_holds_is_refused():
    """In a small tar.gz of compressed blocks, 306 such flips once went unnoticed: digests of members see none."""
    trust, data, plain = building.trust(), bytearray(honest()), gzip.decompress(honest())
    members = unpacked(honest())
    free = [position for position in range(len(data)) if position < 15 or position >= len(data) - 8]
    for content in members.values():
        end = plain.index(content) + len(content)
        free += [plain_gzip.HEADER.__len__() + 5 + place for place in range(end, end + (-end % 512))]
    for position in free:
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(PackageError):
                open_expert_bytes(bytes(data), trust=trust)
            data[position] ^= 1 << bit


def test_every_truncation_is_refused():
    trust, data = building.trust(), honest()
    for length in range(len(data)):
        with pytest.raises(PackageError):
            open_expert_bytes(data[:length], trust=trust)


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"x" * 64, bytes(512), bytes(10_240), None])
def test_appended_bytes_are_refused(tail):
    with pytest.raises(PackageError):
        open_expert_bytes(honest() + (honest() if tail is None else tail), trust=building.trust())


def test_zeros_appended_inside_the_archive_are_refused():
    refuse(zipped(gzip.decompress(honest()) + bytes(10_240)), "but its members need")


def test_prepended_bytes_are_refused():
    refuse(b"\0" + honest(), "its first bytes are not gzip's")


def test_a_file_that_was_cut_or_has_grown_is_refused(tmp_path):
    for name, content in (("cut", honest()[:-1]), ("grown", honest() + b"\0")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PackageError, match=f"{name}: the file is cut short, or foreign bytes follow"):
            open_expert(tmp_path / name, trust=building.trust())


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_the_same_members_in_another_gzip_are_refused_with_a_way_out(level):
    data = gzip.compress(gzip.decompress(honest()), compresslevel=level, mtime=0)
    refuse(data, "run `sealed-experts publish` on the folder")


def test_the_same_members_in_what_gnu_tar_writes_are_refused_with_a_way_out():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in sorted(unpacked(honest()).items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname = len(content), 1_700_000_000, 1000, "somebody"
            archive.addfile(info, io.BytesIO(content))
    refuse(zipped(stream.getvalue()), "run `sealed-experts publish` on the folder")


# Members


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "adapter_model.safetensors", "signature.sig"])
def test_a_member_taken_away_is_refused(name):
    members = unpacked(honest())
    del members[name]
    kind = PackageError if name == "signature.sig" else SignatureError
    refuse(packed(members), "is missing" if kind is PackageError else "does not match", kind)


def test_a_manifest_taken_away_is_refused():
    members = unpacked(honest())
    del members["manifest.json"]
    refuse(packed(members), "member manifest.json is missing")


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors"])
def test_a_member_that_the_publisher_left_out_is_refused(name):
    members = unpacked(honest())
    del members[name]
    refuse(signed(members), f"member {name} is missing, which the manifest lists")


def test_a_member_renamed_is_refused():
    members = unpacked(honest())
    members["readme.md"] = members.pop("README.md")
    refuse(packed(members), "member 'readme.md' is foreign")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/../../evil", "notes.txt", "model.pkl", "optimizer.pt", ".bashrc", "MANIFEST.JSON"],
)
def test_a_foreign_member_is_refused_even_when_signed(name):
    refuse(signed({**unpacked(honest()), name: b"x"}), "is foreign")


def test_a_member_twice_is_refused():
    content = gzip.decompress(honest())
    first = content.index(b"adapter_config.json")
    size = 512 + len(unpacked(honest())["adapter_config.json"])
    member = content[first : first + size + (-size % 512)]
    doubled = content[:first] + member + content[first:]
    refuse(zipped(doubled.rstrip(b"\0").ljust(len(content) + 10_240, b"\0")), "occurs twice")


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors", "manifest.json"])
def test_a_member_swapped_between_two_files_is_refused(name):
    """Both are by the same publisher: only the signature's reach over all members tells them apart."""
    other = {**unpacked(honest()), "README.md": b"another card"}
    manifest = json.loads(other["manifest.json"])
    manifest["description"] = "Another expert."
    other = unpacked(signed({**other, "manifest.json": canonical_json(manifest).encode()}))
    members = unpacked(honest())
    if members[name] == other[name]:
        other[name] = members[name][:-1] + b"\x01"
    refuse(packed({**members, name: other[name]}), "does not match", SignatureError)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.GNUTYPE_LONGNAME, "an extended header"),
        (tarfile.XHDTYPE, "an extended header"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "README.md"])
def test_links_devices_and_the_like_are_refused(kind, message, target):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("README.md")
        info.type, info.linkname = kind, target
        archive.addfile(info)
    refuse(zipped(stream.getvalue()), f"it is {message}; an .expert package holds plain files only")


def test_a_bomb_of_compressed_zeros_is_refused_without_being_inflated():
    bomb = gzip.compress(bytes(50_000_000), mtime=0)
    assert len(bomb) < 100_000
    refuse(bomb, "its gzip")


@pytest.mark.parametrize(
    ("name", "size"), [("manifest.json", 8**11 - 1), ("README.md", 1 << 30), ("signature.sig", 129)]
)
def test_a_header_that_announces_too_much_is_refused_before_it_is_read(name, size):
    refuse(zipped(plain_tar.member_header(name, size).ljust(10_240, b"\0")), f"member {name}: {size} bytes; at most")


def test_a_sparse_file_as_large_as_a_disk_is_refused_at_once(tmp_path):
    path = tmp_path / "huge.expert"
    with open(path, "wb") as stream:
        stream.write(honest()[:4096])
        stream.truncate(1 << 42)
    with pytest.raises(PackageError, match=r"huge\.expert: "):
        open_expert(path, trust=building.trust())


# Signature and manifest


def test_an_untrusted_key_is_refused():
    refuse(honest(2), "is not trusted here", SignatureError)
    with pytest.raises(SignatureError, match="not trusted"):
        open_expert_bytes(honest(), trust=TrustStore([]))


def test_a_self_signed_file_that_claims_the_publishers_name_is_refused():
    ours = json.loads(unpacked(honest())["manifest.json"])["integrity"]["publisher"]
    refuse(signed(unpacked(honest()), number=2, publisher=ours), "not trusted", SignatureError)


def test_the_trusted_public_key_over_a_foreign_signature_is_refused():
    claimed = f"ed25519:{building.key().public.raw.hex()}"
    refuse(signed(unpacked(honest()), number=2, pubkey=claimed), "does not match", SignatureError)


@pytest.mark.parametrize("label", ["none", "", "Ed25519", "ml-dsa-65", "hmac", None, 1, ["ed25519"]])
def test_another_algorithm_is_refused_even_when_signed(label):
    refuse(signed(unpacked(honest()), signature_algorithm=label), "signature_algorithm is", SignatureError)


@pytest.mark.parametrize(("field", "value"), [("publisher", "Somebody Else"), ("created_at", "2030-01-01T00:00:00Z")])
def test_what_integrity_says_is_signed(field, value):
    refuse(packed(changed(field, value)), "does not match", SignatureError)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("signature", "0" * 128, "integrity.signature is not what signature.sig holds"),
        ("signature", None, "integrity.signature is not what signature.sig holds"),
        ("files", {}, "integrity.files does not state"),
        ("files", {"README.md": "0" * 64}, "integrity.files does not state"),
    ],
)
def test_what_integrity_computes_is_computed_again(field, value, message):
    """These two are not signed, so that the signature can be in the manifest; they have one possible value."""
    refuse(packed(changed(field, value)), message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pubkey", "ed25519:00", "integrity.pubkey must be"),
        ("pubkey", 7, "integrity.pubkey must be"),
        ("pubkey", building.key().public.raw.hex(), "integrity.pubkey must be"),
        ("pubkey", f"ed25519:{building.key().public.raw.hex().upper()}", "integrity.pubkey must be"),
        ("created_at", "yesterday", "integrity.created_at must be"),
        ("created_at", 7, "integrity.created_at must be"),
        ("publisher", "", "integrity.publisher must be"),
        ("publisher", "x" * 201, "integrity.publisher must be"),
        ("publisher", "a\u001b[2Jb", "integrity.publisher must be"),
        ("publisher", "a\u202eb", "integrity.publisher must be"),
        ("publisher", ["a"], "integrity.publisher must be"),
        ("note", "hello", "integrity must hold exactly"),
    ],
)
def test_a_field_of_another_form_is_refused_even_when_signed(field, value, message):
    refuse(signed(unpacked(honest()), **{field: value}), message)


# The second signature


@functools.cache
def twice() -> bytes:
    """Return a file that Ed25519 and ML-DSA-65 signed."""
    return expert_building.sealed(building.package(by=building.key(second=True)), second=True)


def refuse_twice(members: Mapping[str, bytes], match: str, kind: type[PackageError] = PackageError) -> None:
    """Check that readers who know both keys refuse an archive of these members, also under a policy for one key."""
    trust = TrustStore([building.key(second=True).public])
    for policy in (Policy(), Policy(signatures=("ed25519",))):
        with pytest.raises(kind, match=match):
            open_expert_bytes(packed(members), trust=trust, policy=policy)


def test_a_file_with_two_signatures_is_accepted_and_says_so():
    found = open_expert_bytes(twice(), trust=TrustStore([building.key(second=True).public]))
    assert found.signatures == ("ed25519", "ml-dsa-65")


def test_the_second_signature_taken_away_is_refused():
    members = unpacked(twice())
    del members["signature.ml-dsa-65.sig"]
    refuse_twice(members, "member signature.ml-dsa-65.sig is missing: the manifest names a key", SignatureError)


def test_whoever_has_broken_ed25519_cannot_strip_the_second_signature():
    members = unpacked(twice())
    del members["signature.ml-dsa-65.sig"]
    forged = signed(members, further_keys={})
    with pytest.raises(SignatureError, match="the ml-dsa-65 signature of key1 is missing"):
        open_expert_bytes(forged, trust=TrustStore([building.key(second=True).public]))


def test_whoever_has_broken_ed25519_cannot_change_what_the_second_signature_covers():
    members = {**unpacked(twice()), "README.md": b"# Other\n"}
    forged = signed(members)
    with pytest.raises(SignatureError, match="the ml-dsa-65 signature does not match"):
        open_expert_bytes(forged, trust=TrustStore([building.key(second=True).public]))


def test_another_second_signature_of_the_same_content_is_refused_unless_ed25519_covers_it():
    again = expert_building.sealed(building.package(by=building.key(second=True)), second=True)
    other = unpacked(again)["signature.ml-dsa-65.sig"]
    refuse_twice({**unpacked(twice()), "signature.ml-dsa-65.sig": other}, "ed25519 signature does not match")


@pytest.mark.parametrize("change", [lambda text: text.upper(), lambda text: text[:-2], lambda text: text + b"\n"])
def test_the_second_signature_has_one_form(change):
    members = unpacked(twice())
    members["signature.ml-dsa-65.sig"] = change(members["signature.ml-dsa-65.sig"])
    refuse_twice(members, "signature does not match|it must hold 6618 hexadecimal|at most 6618", PackageError)


def test_a_second_signature_that_the_manifest_does_not_name_is_foreign():
    members = {**unpacked(honest()), "signature.ml-dsa-65.sig": unpacked(twice())["signature.ml-dsa-65.sig"]}
    refuse(signed(members), "member signature.ml-dsa-65.sig is foreign")


@pytest.mark.parametrize(
    ("stated", "message", "kind"),
    [
        (None, "further_keys must hold a key for each further algorithm", PackageError),
        ([], "further_keys must hold a key for each further algorithm", PackageError),
        ({"ed25519": "00"}, "names the algorithm 'ed25519'", SignatureError),
        ({"rsa\u001b[2J": "00"}, "names the algorithm 'rsa", SignatureError),
        ({"ml-dsa-65": "00"}, "must hold 3904 hexadecimal digits", PackageError),
        ({"ml-dsa-65": 7}, "must hold 3904 hexadecimal digits", PackageError),
        ({"ml-dsa-65": "0" * 3904}, "signature.ml-dsa-65.sig is missing", SignatureError),
    ],
)
def test_further_keys_of_another_form_are_refused_even_when_signed(stated, message, kind):
    refuse(signed(unpacked(honest()), further_keys=stated), message, kind)


@pytest.mark.parametrize("value", [..., None, [], "x"])
def test_a_manifest_without_integrity_is_refused(value):
    members = unpacked(honest())
    manifest = json.loads(members["manifest.json"])
    del manifest["integrity"]
    if value is not ...:
        manifest["integrity"] = value
    refuse(packed({**members, "manifest.json": canonical_json(manifest).encode()}), "integrity must hold exactly")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}\n",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":9007199254740993}',
        b"[" * 100_000,
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"integrity":{"integrity":{}}}',
        "{}".encode("utf-16"),
    ],
)
def test_a_manifest_that_parsers_disagree_about_is_refused(text):
    refuse(packed({**unpacked(honest()), "manifest.json": text}), "^manifest.json: ")


@pytest.mark.parametrize(
    "value", [b"", b"0" * 127, b"g" * 128, b"A" * 128, b"0" * 127 + b"\n", b" " + b"0" * 127, b"\xff" * 128]
)
def test_a_signature_of_another_form_is_refused(value):
    refuse(packed({**unpacked(honest()), "signature.sig": value}), "signature.sig: it must hold 128 hex")


def test_a_signature_of_zeros_is_refused():
    zeros = b"0" * 128
    refuse(packed({**unpacked(honest()), "signature.sig": zeros}), "does not match", SignatureError)


def test_a_key_of_small_order_is_refused_though_trusted():
    """For the neutral point, one constant signature fits every message."""
    neutral = bytes([1]) + bytes(31)
    members = unpacked(signed(unpacked(honest()), pubkey=f"ed25519:{neutral.hex()}"))
    value = (neutral + bytes(32)).hex()
    manifest = json.loads(members["manifest.json"])
    manifest["integrity"]["signature"] = value
    members |= {"manifest.json": canonical_json(manifest).encode(), "signature.sig": value.encode()}
    with pytest.raises(SignatureError, match="small order"):
        open_expert_bytes(packed(members), trust=TrustStore([Publisher(name="weak", keys=(PublicKey(raw=neutral),))]))


# Content, signed by a trusted publisher


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors"])
def test_a_member_that_the_manifest_does_not_describe_is_refused_even_when_signed(name):
    members = unpacked(honest())
    refuse(signed({**members, name: members[name] + b"x"}), f"member {name}: it has")


def test_the_same_linter_looks_at_both_containers():
    weights = bytearray(building.weights())
    weights[-4:] = b"\x00\x00\x80\x7f"
    for name, content, message in (
        (building.WEIGHTS, bytes(weights), "not finite"),
        (building.CONFIG, building.adapter_config(auto_mapping={"base_model_class": "os"}), "auto_mapping"),
        (building.WEIGHTS, b"\x80\x04." + bytes(100), "its header's length"),
    ):
        package = building.with_member(name, content)
        building.refuse(package, message)
        refuse(converted(package), message)
    open_expert_bytes(converted(building.package()), trust=building.trust())


def test_an_unknown_version_is_refused_even_when_signed():
    members = unpacked(honest())
    manifest = json.loads(members["manifest.json"])
    manifest["format_version"] = 99
    with pytest.raises(PackageError, match="format_version"):
        open_expert_bytes(
            signed({**members, "manifest.json": canonical_json(manifest).encode()}), trust=building.trust()
        )


def test_an_algorithm_that_the_format_has_not_can_be_required_and_is_then_missing():
    with pytest.raises(SignatureError, match="ml-dsa-65"):
        open_expert_bytes(honest(), trust=building.trust(), policy=Policy(signatures=("ed25519", "ml-dsa-65")))


def test_revoked_and_expired_publishers_are_refused():
    publisher = building.key().public
    revoked = Publisher(**{**vars(publisher), "revoked": "its disk was stolen"})
    expired = Publisher(**{**vars(publisher), "expires": datetime.date(2020, 1, 1)})
    for entry, message in ((revoked, "was revoked"), (expired, "expired here on 2020-01-01")):
        with pytest.raises(SignatureError, match=message):
            open_expert_bytes(honest(), trust=TrustStore([entry]))


def test_a_publisher_outside_its_scope_is_refused():
    elsewhere = Publisher(**{**vars(building.key().public), "scopes": ("legal_*",)})
    with pytest.raises(SignatureError, match="may not sign an expert called 'tiny_expert'"):
        open_expert_bytes(honest(), trust=TrustStore([elsewhere]))


def test_a_publisher_that_also_has_an_ml_dsa_key_is_accepted_only_by_a_policy_that_says_so():
    """Whoever has broken Ed25519 would otherwise leave the second signature out."""
    both = Publisher(name="both", keys=(*building.key().public.keys, PublicKey(algorithm="ml-dsa-65", raw=bytes(1952))))
    with pytest.raises(SignatureError, match="the ml-dsa-65 signature of both is missing"):
        open_expert_bytes(honest(), trust=TrustStore([both]))
    policy = Policy(signatures=("ed25519",))
    assert open_expert_bytes(honest(), trust=TrustStore([both]), policy=policy).publisher_name == "both"
