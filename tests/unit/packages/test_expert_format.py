"""The `.expert` container: the same bytes for the same content and key, and the message that its specification says."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError
from sealed_experts.packages import publishing
from sealed_experts.packages.content.manifest_schema import TOKENIZER_MEMBERS
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.expert import plain_tar
from sealed_experts.packages.expert.container import open_expert, open_expert_bytes, verify_expert
from sealed_experts.packages.expert.writer import seal_expert
from sealed_experts.packages.keys.policy import Policy
from sealed_experts.packages.keys.private_keys import create_key, load_key
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.publishing import publish_expert
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building, expert_building

ROOT = Path(__file__).resolve().parents[3]
MEMBERS = [
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "license.txt", "manifest.json"),
    *("privacy_receipt.json", "provenance.json", "signature.sig"),
]


def members_of(path: Path) -> dict[str, bytes]:
    """Read the members with Python's tarfile and gzip."""
    with tarfile.open(path, "r:gz") as archive:
        return {info.name: archive.extractfile(info).read() for info in archive.getmembers()}


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "tiny.expert"
    file.write_bytes(expert_building.honest())
    return file


def test_any_tar_reads_it(path, tmp_path):
    assert list(members_of(path)) == MEMBERS
    with tarfile.open(path, "r:gz") as archive:
        for info in archive.getmembers():
            facts = (info.mode, info.uid, info.gid, info.mtime, info.uname, info.gname, info.isreg())
            assert facts == (0o644, 0, 0, 0, "", "", True)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", path, "-C", tmp_path / "out"], check=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")} == members_of(path)


def test_the_tar_inside_is_what_pythons_tarfile_writes(path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members_of(path).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert gzip.decompress(path.read_bytes()) == stream.getvalue()


def test_the_signature_is_over_what_the_specification_says(path):
    """The message is built here from the text of docs/expert.md, with other code."""
    members = members_of(path)
    manifest = json.loads(members["manifest.json"])
    assert rfc8785.dumps(manifest) == members["manifest.json"]
    integrity = manifest["integrity"]
    signature = members["signature.sig"].decode()
    assert signature == integrity["signature"]
    reduced = json.loads(members["manifest.json"])
    del reduced["integrity"]["signature"]
    del reduced["integrity"]["files"]
    contents = {**members, "manifest.json": rfc8785.dumps(reduced)}
    del contents["signature.sig"]
    lines = sorted(f"{name}:{len(data)}:{hashlib.sha256(data).hexdigest()}\n" for name, data in contents.items())
    message = "sealed-experts/expert/v1\n" + "".join(lines)
    algorithm, key = integrity["pubkey"].split(":")
    assert (algorithm, integrity["signature_algorithm"]) == ("ed25519", "ed25519")
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), message.encode())
    assert bytes.fromhex(key) == building.key().public.raw
    del contents["manifest.json"]
    assert integrity["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def test_it_holds_the_same_content_as_a_tgsp(path):
    package = open_expert(path, trust=building.trust())
    manifest, members = building.parts()
    assert (package.manifest, package.members) == (manifest, members)
    assert members_of(path)["license.txt"] == members["LICENSE"]


def test_verifying_from_a_file_finds_what_opening_finds(path):
    opened, report = open_expert(path, trust=building.trust()), verify_expert(path, trust=building.trust())
    assert (report.digest, report.manifest, report.publisher) == (opened.digest, opened.manifest, opened.publisher)
    assert report.members == {name: data for name, data in opened.members.items() if name != building.WEIGHTS}
    assert report.size == path.stat().st_size


def test_the_specifications_table_of_members_is_what_is_enforced():
    units = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    stated = {}
    for row in re.findall(
        r"^\| `([\w.]+)` \|.*\| ([^|]+) \|$", (ROOT / "docs" / "expert.md").read_text(), re.MULTILINE
    ):
        terms = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) (\w+)", row[1])]
        if terms:
            stated[row[0]] = terms[0] - sum(terms[1:])
    assert sorted(stated) == sorted([*MEMBERS, *TOKENIZER_MEMBERS])
    for name, limit in stated.items():
        for size, message in (
            (limit, "cannot hold|is missing"),
            (limit + 1, f"at most {limit} are allowed"),
        ):
            header = plain_tar.member_header(name, size).ljust(plain_tar.RECORD, b"\0")
            expert_building.refuse(expert_building.zipped(header), message)


# Time and publisher


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (None, None),
        ("", None),
        ("0", "1970-01-01T00:00:00Z"),
        ("1767225600", "2026-01-01T00:00:00Z"),
        ("253402300799", "9999-12-31T23:59:59Z"),
    ],
)
def test_the_time_is_source_date_epoch_or_none(tmp_path, monkeypatch, epoch, expected):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    if epoch is not None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    manifest, members = building.parts()
    seal_expert(tmp_path / "x.expert", manifest=manifest, members=members, key=building.key())
    assert verify_expert(tmp_path / "x.expert", trust=building.trust()).integrity["created_at"] == expected


@pytest.mark.parametrize("epoch", ["-1", "1.5", "now", "253402300800", "1" * 13, "٣"])
def test_an_epoch_that_is_no_time_is_refused(tmp_path, monkeypatch, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    manifest, members = building.parts()
    with pytest.raises(UserError, match="SOURCE_DATE_EPOCH"):
        seal_expert(tmp_path / "x.expert", manifest=manifest, members=members, key=building.key())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\u202eb"])
def test_a_publishers_name_is_one_line_of_visible_text(tmp_path, name):
    manifest, members = building.parts()
    with pytest.raises(UserError, match="cannot name a publisher"):
        seal_expert(tmp_path / "x.expert", manifest=manifest, members=members, key=building.key(), publisher=name)


# Sealing


def test_what_cannot_be_verified_does_not_appear(tmp_path):
    manifest, members = building.parts()
    members["README.md"] += b"one line more"
    with pytest.raises(PackageError, match=r"member README\.md: it has"):
        seal_expert(tmp_path / "x.expert", manifest=manifest, members=members, key=building.key())
    assert os.listdir(tmp_path) == []


def test_a_failed_sealing_leaves_the_former_file(tmp_path, path):
    before = path.read_bytes()
    manifest, members = building.parts()
    with pytest.raises(PackageError):
        seal_expert(path, manifest={**manifest, "name": "Not A Name"}, members=members, key=building.key())
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_two_builds_are_byte_identical(tmp_path):
    """Under another hash seed, time zone, clock, umask, folder and current folder."""
    package = tmp_path / "tiny.tgsp"
    create_key(algorithms=["ed25519"])
    package.write_bytes(building.package(by=load_key()))
    made = []
    for number, (seed, zone, mask) in enumerate((("0", "UTC", 0o022), ("4711", "Asia/Tokyo", 0o077))):
        folder = tmp_path / f"build {number}" / ("deep" * number)
        folder.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONHASHSEED": seed, "TZ": zone}
        command = [sys.executable, "-m", "sealed_experts.cli.main", "publish", package, "--output", folder]
        subprocess.run(command, env=environment, cwd=folder, umask=mask, check=True, capture_output=True)
        (file,) = folder.iterdir()
        os.utime(package, (number * 1_000_000, number * 1_000_000))
        made.append((file.name, file.read_bytes()))
    assert made[0] == made[1]


# Publishing


@pytest.fixture
def sealed(tmp_path) -> Path:
    """A package signed by the current publisher's key."""
    create_key()
    file = tmp_path / "tiny.tgsp"
    file.write_bytes(building.package(by=load_key()))
    return file


def test_publishing_from_a_package_its_folder_and_what_tar_unpacked_gives_the_same_file(tmp_path):
    create_key(algorithms=["ed25519"])
    sealed = tmp_path / "tiny.tgsp"
    sealed.write_bytes(building.package(by=load_key()))
    first, digest = publish_expert(sealed, output=tmp_path)
    assert first.name == "tiny_expert-tiny.v1.0.0.expert"
    assert hashlib.sha256(first.read_bytes()).hexdigest() == digest
    assert main(["unpack", str(sealed), str(tmp_path / "folder")]) == 0
    (tmp_path / "tarred").mkdir()
    subprocess.run(["tar", "-xzf", first, "-C", tmp_path / "tarred"], check=True)
    for source in (first, tmp_path / "folder", tmp_path / "tarred"):
        again, _ = publish_expert(source, output=tmp_path / "again")
        assert again.read_bytes() == first.read_bytes()


def test_another_encoding_is_refused_with_a_way_out_that_works(sealed, tmp_path, capsys):
    published, _ = publish_expert(sealed, output=tmp_path)
    foreign = tmp_path / "foreign.expert"
    foreign.write_bytes(gzip.compress(gzip.decompress(published.read_bytes()), mtime=0))
    assert main(["verify", str(foreign)]) == 11
    message = capsys.readouterr().err
    assert "unpack the file with tar" in message
    assert "run `sealed-experts publish` on the folder" in message
    (tmp_path / "folder").mkdir()
    subprocess.run(["tar", "-xzf", foreign, "-C", tmp_path / "folder"], check=True)
    assert main(["publish", str(tmp_path / "folder"), "--output", str(tmp_path / "again")]) == 0
    assert main(["verify", str(tmp_path / "again" / published.name)]) == 0


def test_what_another_publisher_signed_is_not_signed_again_unseen(tmp_path):
    create_key()
    theirs = tmp_path / "theirs.expert"
    theirs.write_bytes(expert_building.honest())
    with pytest.raises(SignatureError, match="unpack it, look at it, and publish the folder"):
        publish_expert(theirs, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_default_publisher_publishes_is_verified_and_installed_without_a_policy(sealed, tmp_path, capsys):
    """An .expert once had room for Ed25519 alone, so the machine that made it refused it."""
    assert main(["publish", str(sealed), "--output", str(tmp_path)]) == 0
    path = str(tmp_path / "tiny_expert-tiny.v1.0.0.expert")
    assert main(["verify", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["signatures"] == ["ed25519", "ml-dsa-65"]
    assert main(["install", path, "--registry", str(tmp_path / "registry")]) == 0


def test_a_reader_that_knows_only_signature_sig_verifies_it_too(sealed, tmp_path):
    """The computation of docs/expert.md, with the cryptography package alone: every other member, and the manifest."""
    published, _ = publish_expert(sealed, output=tmp_path)
    members = members_of(published)
    manifest = json.loads(members["manifest.json"])
    integrity = manifest["integrity"]
    signature, files = integrity.pop("signature"), integrity.pop("files")
    reduced = rfc8785.dumps(manifest)
    covered = {**members, "manifest.json": reduced}
    covered.pop("signature.sig")
    lines = sorted(f"{name}:{len(text)}:{hashlib.sha256(text).hexdigest()}\n" for name, text in covered.items())
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(integrity["pubkey"].removeprefix("ed25519:")))
    key.verify(
        bytes.fromhex(members["signature.sig"].decode()), ("sealed-experts/expert/v1\n" + "".join(lines)).encode()
    )
    assert signature == members["signature.sig"].decode()
    assert files == {
        name: hashlib.sha256(text).hexdigest() for name, text in covered.items() if name != "manifest.json"
    }
    assert "signature.ml-dsa-65.sig" in files


def test_one_signature_of_a_publisher_known_with_two_keys_needs_a_policy(tmp_path):
    """An .expert was once accepted with only Ed25519, so a forger who broke that could choose this container."""
    key = building.key(7, second=True)
    path = tmp_path / "two.expert"
    path.write_bytes(expert_building.sealed(building.package(by=building.key(7)), number=7))
    with pytest.raises(SignatureError, match="the ml-dsa-65 signature of key7 is missing"):
        verify_expert(path, trust=TrustStore([key.public]))
    assert verify_expert(path, trust=TrustStore([key.public]), policy=Policy(signatures=("ed25519",)))
    assert verify_expert(path, trust=building.trust(7))


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_stands_at_a_published_name_is_left_alone(sealed, tmp_path, kind):
    """A FIFO once hung the command, and a folder ended it with a traceback."""
    published, _ = publish_expert(sealed, output=tmp_path / "first")
    target = tmp_path / "out" / published.name
    target.parent.mkdir()
    {"folder": target.mkdir, "fifo": lambda: os.mkfifo(target), "link": lambda: target.symlink_to(published)}[kind]()
    with pytest.raises(UserError, match="is in the way"):
        publish_expert(sealed, output=target.parent)
    assert os.listdir(target.parent) == [published.name]


def test_a_file_that_appears_while_one_is_published_is_not_written_over(sealed, tmp_path, monkeypatch):
    seal = publishing.seal_expert

    def then_another(path, **content):
        digest = seal(path, **content)
        (tmp_path / "out" / "tiny_expert-tiny.v1.0.0.expert").write_bytes(b"another's")
        return digest

    monkeypatch.setattr(publishing, "seal_expert", then_another)
    with pytest.raises(UserError, match="exists with other content"):
        publish_expert(sealed, output=tmp_path / "out")
    assert (tmp_path / "out" / "tiny_expert-tiny.v1.0.0.expert").read_bytes() == b"another's"
    assert len(os.listdir(tmp_path / "out")) == 1


@pytest.mark.parametrize("output", ["file", "x" * 300, "x/" * 4000])
def test_publishing_into_what_is_no_folder_is_one_line(sealed, tmp_path, capsys, output):
    (tmp_path / "file").write_text("")
    assert main(["publish", str(sealed), "--output", str(tmp_path / output)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_version_that_makes_no_file_name_is_refused_when_sealing_and_when_opening(monkeypatch):
    """Packages were sealed that could be neither installed nor published."""
    long = {"settings": building.run(name="n" * 90, version="1.0.0-" + "a" * 190)}
    refusal = pytest.raises(PackageError, match="at most 200 are allowed")
    with refusal:
        building.package(**long)
    with monkeypatch.context() as patch:
        patch.setattr("sealed_experts.packages.content.manifest.LONGEST_NAME", 1000)
        package = building.package(**long)
        archive = expert_building.sealed(package)
    with refusal:
        open_bytes(package, trust=building.trust())
    with refusal:
        open_expert_bytes(archive, trust=building.trust())


def test_a_published_version_never_changes(sealed, tmp_path):
    published, digest = publish_expert(sealed, output=tmp_path)
    assert publish_expert(sealed, output=tmp_path) == (published, digest)
    before = published.read_bytes()
    with pytest.raises(UserError, match="a published version never changes"):
        publish_expert(sealed, output=tmp_path, publisher="Another Name")
    assert published.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("name", ["optimizer.pt", ".hidden", "key.pem"])
def test_a_folder_with_foreign_files_is_not_published(sealed, tmp_path, name):
    assert main(["unpack", str(sealed), str(tmp_path / "folder")]) == 0
    (tmp_path / "folder" / name).write_text("x")
    with pytest.raises(PackageError, match=f"member '{name}' is foreign"):
        publish_expert(tmp_path / "folder", output=tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"members":7}', b'{"members":[{"path":[]}]}'])
def test_a_folder_without_a_packages_manifest_is_not_published(tmp_path, content):
    create_key()
    folder = tmp_path / "folder"
    folder.mkdir()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest"):
        publish_expert(folder, output=tmp_path / "out")


# Size


def test_verifying_a_large_file_needs_little_memory(tmp_path):
    """A file of 100 MB; what is measured is how much the process's peak grows."""
    import numpy as np

    rank, width = 64, 100_000
    arrays = {}
    for module in building.MODULES:
        name = f"base_model.model.{module}"
        arrays[f"{name}.lora_A.weight"] = np.full((rank, width), 0.5, dtype="<f4")
        arrays[f"{name}.lora_B.weight"] = np.full((width, rank), 0.25, dtype="<f4")
    package = building.package(
        settings=building.run(adapter=building.Lora(rank=rank, alpha=4, target_modules=("q_proj", "v_proj"))),
        adapter_config=building.adapter_config(r=rank),
        adapter_weights=building.weights(arrays),
    )
    path = tmp_path / "large.expert"
    path.write_bytes(expert_building.sealed(package))
    code = (
        "import resource, sys; from pathlib import Path; from sealed_experts.packages.opening import *\n"
        "import jsonschema, sealed_experts.packages.expert.writer\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); report = verify_any(sys.argv[1], trust=trust_in_file(Path(sys.argv[2])))\n"
        "print(report.size, peak() - before)"
    )
    public = tmp_path / "key.pub"
    public.write_text(building.key().public.pem)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-c", code, str(path), str(public)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    size, grown = map(int, done.stdout.split())
    assert size > 100_000_000
    assert grown < 64 * 1024, f"the peak grew by {grown} kB"


def test_an_untrusted_store_opens_nothing(path):
    with pytest.raises(SignatureError, match="not trusted"):
        verify_expert(path, trust=TrustStore([]))
