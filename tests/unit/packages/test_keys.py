"""Publishers' keys and the trust store: who may read them, how the first key is made, who is trusted."""

import datetime
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sealed_experts.errors import UserError
from sealed_experts.files.home import home_folder
from sealed_experts.packages.keys import private_keys, trust
from sealed_experts.packages.keys.pem import read_public_keys
from sealed_experts.packages.keys.sealing_key import settle_publisher
from tests.attacks import building

ROOT = Path(__file__).resolve().parents[3]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o000, 0o002, 0o077], ids=["umask 000", "umask 002", "umask 077"])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_key_and_its_folders_are_private_whatever_the_umask():
    key = private_keys.create_key()
    path = private_keys.key_path()
    assert path == home_folder() / "keys" / "publisher.pem"
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert mode(trust.trust_folder()) == 0o700
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert building.own_fingerprint() == key.fingerprint
    assert trust.load_trust().find(key.fingerprint) == key


def test_a_fingerprint_is_the_sha256_of_the_raw_key():
    """Public key and digest of RFC 8032's first test vector, the digest from the sha256sum command."""
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert trust.fingerprint(raw) == "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_use_is_refused(wide):
    private_keys.create_key()
    private_keys.key_path().chmod(wide)
    with pytest.raises(UserError, match=f"mode {wide:04o}.*chmod 600"):
        private_keys.load_key()


@pytest.mark.parametrize("wide", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused(wide):
    private_keys.create_key()
    folder = private_keys.keys_folder()
    folder.chmod(wide)
    with pytest.raises(UserError, match="other users can write"):
        private_keys.load_key()
    folder.chmod(0o700)
    trust.trust_folder().chmod(wide)
    with pytest.raises(UserError, match="other users can write"):
        trust.load_trust()


def test_a_symlink_into_a_folder_that_others_can_write_is_refused(tmp_path, monkeypatch):
    private_keys.create_key()
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir(mode=0o700)
    (shared / "key.pem").write_bytes(private_keys.key_path().read_bytes())
    (shared / "key.pem").chmod(0o600)
    shared.chmod(0o777)
    (own / "key.pem").symlink_to(shared / "key.pem")
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(own / "key.pem"))
    with pytest.raises(UserError, match="other users can write"):
        private_keys.load_key()


def test_an_existing_key_is_never_replaced():
    private_keys.create_key()
    before = private_keys.key_path().read_bytes()
    with pytest.raises(UserError, match="exists"):
        private_keys.create_key()
    assert private_keys.key_path().read_bytes() == before


@pytest.mark.parametrize("name", ["../evil", "", "A", ".hidden", "a/b", "x" * 65, "a\n"])
def test_a_name_cannot_lead_elsewhere(name):
    with pytest.raises(UserError, match="cannot name a key"):
        private_keys.create_key(name=name)
    with pytest.raises(UserError, match="cannot name a key"):
        building.trust_key(b"\1" * 32, name=name)


def private_pem(private, encryption=None) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a private key"),
        (b"\xff" * 100, "not a private key"),
        (
            private_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            "holds a RSAPrivateKey",
        ),
        (private_pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")), "has a passphrase"),
    ],
    ids=["empty", "noise", "rsa", "passphrase"],
)
def test_a_file_that_holds_no_usable_key_is_refused(content, match):
    private_keys.create_key()
    private_keys.key_path().write_bytes(content)
    with pytest.raises(UserError, match=match):
        private_keys.load_key()


def test_a_missing_key_named_by_the_environment_is_not_made(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(tmp_path / "mine.pem"))
    with pytest.raises(UserError, match="does not exist"):
        private_keys.ensure_publisher_key()
    assert list(tmp_path.iterdir()) == []


def test_the_environment_chooses_the_key(tmp_path, monkeypatch):
    other = private_keys.create_key(name="other")
    tmp_path.chmod(0o700)
    path = tmp_path / "mine.pem"
    path.write_bytes(private_keys.key_path("other").read_bytes())
    path.chmod(0o600)
    private_keys.create_key()
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(path))
    assert building.own_fingerprint() == other.fingerprint
    assert private_keys.ensure_publisher_key() == other.fingerprint


def test_the_first_use_makes_a_key_and_says_so(capsys):
    assert private_keys.ensure_publisher_key(create=False) == private_keys.NOT_MADE_YET
    assert not home_folder().exists() or list(home_folder().iterdir()) == []
    made = private_keys.ensure_publisher_key()
    assert f"fingerprint {made}" in capsys.readouterr().err
    assert private_keys.ensure_publisher_key() == private_keys.ensure_publisher_key(create=False) == made
    assert capsys.readouterr().err == ""


def test_the_first_key_has_the_algorithms_asked_for():
    private_keys.ensure_publisher_key(algorithms=["ed25519"])
    assert private_keys.load_key().public.algorithms == ("ed25519",)
    private_keys.ensure_publisher_key(algorithms=["ed25519", "ml-dsa-65"])  # it is there: nothing is made
    assert private_keys.load_key().public.algorithms == ("ed25519",)


def test_an_expired_publisher_key_is_refused_before_anything_is_sealed_with_it():
    key = private_keys.create_key()
    trust.trust_publisher(replace(key, expires=datetime.date(2020, 1, 1)))
    with pytest.raises(UserError, match=r"expired here on 2020-01-01.*keys trust.* later --expires"):
        private_keys.ensure_publisher_key()


def test_a_publisher_key_that_may_not_sign_an_expert_is_refused_before_anything_is_sealed_with_it():
    key = private_keys.create_key()
    trust.trust_publisher(replace(key, scopes=("bank*",)))
    assert settle_publisher({"banking_expert": ()}, create=True) == key.fingerprint
    with pytest.raises(UserError, match=r"cannot seal the expert loans: .*trusted for bank\* only"):
        settle_publisher({"banking_expert": (), "loans": ()}, create=True)


def test_a_publisher_key_that_is_trusted_with_other_keys_is_refused_before_anything_is_sealed_with_it():
    """The store had only its first key, so every package with both signatures was refused when it was sealed."""
    key = private_keys.create_key()
    trust.untrust_key(key.fingerprint)
    building.trust_key(key.raw, name="publisher")
    with pytest.raises(UserError, match=r"is trusted here with other keys.*keys untrust publisher"):
        private_keys.ensure_publisher_key()


def test_an_untrusted_publisher_key_is_refused_before_anything_is_sealed_with_it():
    key = private_keys.create_key()
    trust.untrust_key(key.fingerprint)
    with pytest.raises(UserError, match="keys trust"):
        private_keys.ensure_publisher_key()


def test_first_use_keeps_another_key_that_is_trusted_as_publisher():
    """The name may belong to a colleague's key: making the user's own key must not remove that from the store."""
    building.trust_key(b"\1" * 32, name="publisher")
    made = private_keys.ensure_publisher_key()
    assert trust.load_trust().find(made) is not None
    assert trust.load_trust().find(trust.fingerprint(b"\1" * 32)) is not None


def test_processes_that_start_at_once_agree_on_one_first_key():
    code = "from sealed_experts.packages.keys.private_keys import ensure_publisher_key as e; print(e())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}

    def one(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
        )

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(one, range(6)))
    assert {run.stdout for run in done} == {f"{building.own_fingerprint()}\n"}
    assert sum("made a publisher key" in run.stderr for run in done) == 1
    assert len(trust.load_trust()) == 1
    assert [path.name for path in private_keys.keys_folder().glob("*.pem")] == ["publisher.pem"]


def test_the_fingerprint_costs_little_and_neither_torch_nor_numpy():
    """It is a parameter of a rule, so every Snakemake command computes it."""
    private_keys.create_key()
    code = (
        "import sys, json, dataclasses, typing, time; start = time.process_time();"
        "from sealed_experts.packages.keys.private_keys import ensure_publisher_key as f; f();"
        "seconds = time.process_time() - start;"
        "print(seconds, sorted({'torch', 'transformers', 'numpy', 'jsonschema'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds = min(float(run.stdout.split()[0]) for run in runs)
    assert all(run.stdout.split(maxsplit=1)[1] == "[]\n" for run in runs)
    assert seconds < 0.25  # measured 0.05; the rest is room for a busy machine


def test_the_private_half_does_not_show():
    key = private_keys.create_key()
    loaded = private_keys.load_key()
    assert loaded.public.raw == key.raw
    shown = repr(loaded) + str(loaded) + repr(vars(loaded)["public"])
    assert "PrivateKey" not in shown
    for line in private_keys.key_path().read_text().splitlines():
        assert line.startswith("-----") or line not in shown
    blocks = re.findall(r"-----BEGIN PRIVATE.*?END PRIVATE KEY-----\n", private_keys.key_path().read_text(), re.DOTALL)
    assert len(blocks) == len(loaded.public.keys)
    for block in blocks:
        private = load_pem_private_key(block.encode(), password=None)
        assert repr(private.private_bytes_raw()) not in shown
        assert private.private_bytes_raw().hex() not in shown


# The trust store


def test_a_name_stands_for_one_key():
    building.trust_key(b"\1" * 32, name="partner")
    building.trust_key(b"\1" * 32, name="partner")
    with pytest.raises(UserError, match="another trusted key"):
        building.trust_key(b"\2" * 32, name="partner")
    assert [key.name for key in trust.load_trust()] == ["partner"]


def test_untrust_by_name_or_fingerprint():
    building.trust_key(b"\1" * 32, name="one")
    building.trust_key(b"\2" * 32, name="two")
    trust.untrust_key("one")
    trust.untrust_key(trust.fingerprint(b"\2" * 32))
    assert len(trust.load_trust()) == 0
    with pytest.raises(UserError, match="trusted are: none"):
        trust.untrust_key("one")


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64},
        {"keys": {"ed25519": "11" * 31}},
        {"keys": {"ed25519": "zz" * 32}},
        {"keys": {"ed25519": "11" * 32}},
        {"keys": {"rsa": "11" * 32}},
        {"keys": {"ed25519": (b"\1" * 32).hex(), "rsa": "11" * 32}},
        {"keys": {"ed25519": (b"\1" * 32).hex(), "ml-dsa-65": "11" * 32}},
        {"keys": (b"\1" * 32).hex()},
        {"keys": {}},
        {"name": "other"},
        {"name": 5},
        {"scope": "all"},
        {"scopes": "all"},
        {"scopes": []},
        {"scopes": ["../*"]},
        {"scopes": ["[a-z]"]},
        {"scopes": [None]},
        {"expires": "tomorrow"},
        {"expires": 20301231},
        {"expires": "2030-02-30"},
        {"revoked": ""},
        {"revoked": True},
        {"revoked": "two\nlines"},
        {"ancestors": "0" * 64},
        {"ancestors": ["somebody"]},
        {"ancestors": [7]},
        {"ancestors": None},
        {"certified_by": None},
    ],
)
def test_a_damaged_entry_is_refused_with_its_file(change):
    building.trust_key(b"\1" * 32, name="partner")
    path = trust.trust_folder() / "partner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"partner\.json"):
        trust.load_trust()


def test_a_public_key_file_is_read_and_nothing_else(tmp_path):
    key = private_keys.create_key()
    public = tmp_path / "key.pub"
    public.write_text(key.pem)
    assert read_public_keys(public) == key.keys
    with pytest.raises(UserError, match="private key"):
        read_public_keys(private_keys.key_path())
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    public.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UserError, match="Ed25519"):
        read_public_keys(public)
    public.write_bytes(b"ssh-ed25519 AAAA")
    with pytest.raises(UserError, match="not a public key"):
        read_public_keys(public)
    with pytest.raises(UserError, match="cannot read"):
        read_public_keys(tmp_path / "none")


def test_one_damaged_home_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="SEALED_EXPERTS_HOME"):
        private_keys.create_key()


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_key_that_is_no_regular_file_is_refused_and_nothing_waits(kind):
    """A folder once caused an IsADirectoryError with a traceback."""
    private_keys.create_key()
    private_keys.key_path().unlink()
    os.mkfifo(private_keys.key_path()) if kind == "fifo" else private_keys.key_path().mkdir()
    with pytest.raises(UserError, match="not a regular file"):
        private_keys.load_key()
