"""Publishers' files: one PEM block an algorithm, a passphrase that is expensive to guess, nowhere near a project."""

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sealed_experts.errors import UserError
from sealed_experts.sealing.keys import pem, private_keys, signing
from sealed_experts.sealing.keys.home import home_folder
from sealed_experts.sealing.keys.passphrase import VARIABLE
from sealed_experts.sealing.keys.pem import parse_private, parse_public, private_pem

ROOT = Path(__file__).resolve().parents[2]
CURVE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LATTICE = MLDSA65PrivateKey.from_seed_bytes(bytes(range(32)))
BOTH = {"ed25519": CURVE, "ml-dsa-65": LATTICE}


def block(key, encryption=None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def raw(private) -> dict[str, bytes]:
    return {name: key.private_bytes_raw() for name, key in private.items()}


def public(*private) -> bytes:
    encoded = [
        signing.encode_public(algorithm=signing.algorithm_of(key), public_key=key.public_key().public_bytes_raw())
        for key in private
    ]
    return b"".join(encoded)


def write(content: bytes, name: str = "publisher") -> Path:
    path = home_folder() / "keys" / f"{name}.pem"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


# What a file may hold


def test_a_private_file_has_one_block_an_algorithm_and_comes_back():
    content = private_pem(BOTH.values(), passphrase=None)
    assert content == block(CURVE) + block(LATTICE)
    assert raw(parse_private(content, where="file", secret=None)) == raw(BOTH)
    swapped = block(LATTICE) + b"\n" + block(CURVE)
    assert list(parse_private(swapped, where="file", secret=None)) == ["ed25519", "ml-dsa-65"]


def test_a_file_of_ed25519_alone_still_loads_and_signs():
    key = private_keys.load_key(write(block(CURVE)))
    assert key.public.algorithms == ("ed25519",)
    assert key.sign(b"message", algorithm="ed25519") == CURVE.sign(b"message")
    with pytest.raises(UserError, match=r"has no 'ml-dsa-65' key.*keys rotate"):
        key.sign(b"message", algorithm="ml-dsa-65")


def test_a_key_of_both_signs_with_both():
    key = private_keys.load_key(write(private_pem(BOTH.values(), passphrase=None)))
    for each in key.public.keys:
        value = key.sign(b"message", algorithm=each.algorithm)
        signing.verify_signature(algorithm=each.algorithm, public_key=each.raw, value=value, message=b"message")


P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (block(LATTICE), "holds no Ed25519 key"),
        (block(CURVE) + block(CURVE), "holds two ed25519 keys"),
        (block(CURVE) + block(LATTICE) + block(LATTICE), "holds two ml-dsa-65 keys"),
        (block(CURVE) + block(P256), "publishers' keys are Ed25519, with ML-DSA-65 beside it"),
        (block(CURVE) + b"a word", "is not a private key in PEM"),
        (b"a word\n" + block(CURVE), "is not a private key in PEM"),
        (block(CURVE)[:-10], "is not a private key in PEM"),
        (block(CURVE).replace(b"BEGIN PRIVATE", b"BEGIN PUBLIC"), "is not a private key in PEM"),
        (public(CURVE), "must hold PKCS8 private keys alone"),
        (block(CURVE) + block(LATTICE, BestAvailableEncryption(b"word")), "all or none of them encrypted"),
    ],
)
def test_other_private_files_are_refused(content, match, monkeypatch):
    monkeypatch.setenv(VARIABLE, "word")
    with pytest.raises(UserError, match=match) as caught:
        private_keys.load_key(write(content))
    assert str(home_folder()) in str(caught.value)


def test_a_public_file_comes_back_in_its_own_order():
    found = parse_public(public(LATTICE, CURVE), where="file")
    assert [(key.algorithm, key.raw) for key in found] == [
        ("ed25519", CURVE.public_key().public_bytes_raw()),
        ("ml-dsa-65", LATTICE.public_key().public_bytes_raw()),
    ]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a public key"),
        (b"\n\n", "not a public key"),
        (public(LATTICE), "holds no Ed25519 key"),
        (public(CURVE, CURVE), "holds two ed25519 keys"),
        (public(CURVE) + b"# a remark\n", "not a public key"),
        (public(CURVE) + block(LATTICE), "holds a private key"),
        (public(CURVE).replace(b"PUBLIC KEY", b"CERTIFICATE"), "it holds a CERTIFICATE"),
        (public(CURVE, LATTICE)[:-200], "not a public key"),
        (public(CURVE) + b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
    ],
)
def test_other_public_files_are_refused(content, match):
    with pytest.raises(UserError, match=f"^file .*{match}"):
        parse_public(content, where="file")


def test_a_public_file_cut_at_any_length_is_refused_or_loses_a_whole_block():
    whole = public(CURVE, LATTICE)
    for length in range(len(whole) - 1):
        try:
            found = parse_public(whole[:length], where="file")
        except UserError:
            continue
        assert [key.algorithm for key in found] == ["ed25519"]
        assert whole[:length].strip() == public(CURVE).strip()


def test_openssl_reads_what_we_write(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command here")
    (tmp_path / "public.pem").write_bytes(public(CURVE, LATTICE))
    command = ["openssl", "pkey", "-pubin", "-in", str(tmp_path / "public.pem"), "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert der[-32:] == CURVE.public_key().public_bytes_raw()
    (tmp_path / "private.pem").write_bytes(private_pem([CURVE], passphrase=b"a word or two"))
    command = ["openssl", "pkey", "-in", str(tmp_path / "private.pem"), "-passin", "pass:a word or two"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == block(CURVE)


# Passphrases


def test_a_passphrase_protects_every_block_and_opens_it(monkeypatch):
    content = private_pem(BOTH.values(), passphrase=b"a word or two")
    assert content.count(b"BEGIN ENCRYPTED PRIVATE KEY") == 2
    for key in BOTH.values():
        assert key.private_bytes_raw() not in content
    assert raw(parse_private(content, where="file", secret=b"a word or two")) == raw(BOTH)
    first = content.split(b"-----END ENCRYPTED PRIVATE KEY-----\n")[0] + b"-----END ENCRYPTED PRIVATE KEY-----\n"
    assert load_pem_private_key(first, b"a word or two").private_bytes_raw() == CURVE.private_bytes_raw()


def test_two_files_under_one_passphrase_share_nothing():
    first, second = (private_pem([CURVE], passphrase=b"word") for _ in range(2))
    assert first.splitlines()[2] != second.splitlines()[2]


def test_a_guess_at_the_passphrase_is_expensive():
    """scrypt with N = 2^14, r = 8, p = 5; the library's own form takes less than a millisecond a guess."""
    content = private_pem([CURVE], passphrase=b"word")
    started = time.process_time()
    load_pem_private_key(content, b"word")
    assert time.process_time() - started > 0.03


@pytest.mark.parametrize("wrong", ["other", "Word", "word ", "wörd"])
def test_a_wrong_passphrase_is_refused_and_not_shown(wrong, monkeypatch):
    path = write(private_pem(BOTH.values(), passphrase=b"word"))
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(UserError, match="the passphrase does not open") as caught:
        private_keys.load_key(path)
    assert wrong not in str(caught.value).replace("the passphrase does not open", "")


def test_the_environment_gives_the_passphrase_to_new_keys_and_opens_them(monkeypatch):
    monkeypatch.setenv(VARIABLE, "wörd")
    made = private_keys.ensure_publisher_key()
    assert private_keys.key_path().read_bytes().count(b"BEGIN ENCRYPTED PRIVATE KEY") == 2
    assert private_keys.load_key().public.fingerprint == made
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=f"has a passphrase: set {VARIABLE}"):
        private_keys.load_key()


def test_the_fingerprint_needs_no_passphrase(monkeypatch):
    """Snakemake asks for it whenever it reads the rules: nobody can be asked then."""
    key = private_keys.create_key(secret=b"word")
    assert private_keys.ensure_publisher_key() == private_keys.publisher_fingerprint() == key.fingerprint
    private_keys.key_path().with_suffix(".pub").unlink()
    with pytest.raises(UserError, match="has a passphrase"):
        private_keys.publisher_fingerprint()


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_passphrase_in_the_environment_is_none(empty, monkeypatch):
    if empty is not None:
        monkeypatch.setenv(VARIABLE, empty)
    private_keys.create_key()
    assert not pem.is_encrypted(private_keys.key_path().read_bytes())


def typed(command: list[str], *answers: str) -> tuple[int, str]:
    """Run a command on a terminal of its own, answer what it asks, and return its code and what was shown."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "sealed_experts.cli.main", *command], environment)
    shown, waiting = "", list(answers)
    while True:
        try:
            piece = os.read(terminal, 1024).decode()
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if waiting and shown.rstrip(" ").endswith(":"):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_terminal_is_asked_and_shows_no_passphrase():
    code, shown = typed(["keys", "create", "--passphrase"], "correct horse", "correct horse")
    assert code == 0, shown
    assert "correct horse" not in shown
    code, shown = typed(["keys", "rotate", "--output", str(home_folder() / "statement.json")], "correct horse")
    assert code == 0, shown
    assert private_keys.key_path().read_bytes().count(b"BEGIN ENCRYPTED PRIVATE KEY") == 2
    assert raw(parse_private(private_keys.key_path().read_bytes(), where="file", secret=b"correct horse"))


def test_two_different_answers_make_no_key():
    code, shown = typed(["keys", "create", "--passphrase"], "correct horse", "wrong horse")
    assert (code, private_keys.key_path().exists()) == (1, False)
    assert "the two passphrases differ" in shown


def test_without_a_terminal_nothing_waits():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-m", "sealed_experts.cli.main", "keys", "create", "--passphrase"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"set {VARIABLE}" in done.stderr
    assert not private_keys.key_path().exists()


# Where a private key may lie


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
@pytest.mark.parametrize("place", ["results/keys", ".", "a/b/c"])
def test_no_key_is_made_inside_a_workflow(tmp_path, monkeypatch, snakefile, place):
    (tmp_path / snakefile).parent.mkdir(exist_ok=True)
    (tmp_path / snakefile).write_text("")
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / place))
    for make in (private_keys.create_key, private_keys.ensure_publisher_key):
        with pytest.raises(UserError, match=r"lies in the project .*SEALED_EXPERTS_HOME"):
            make()
    assert list(tmp_path.rglob("*.pem")) == list(tmp_path.rglob("*.json")) == []


def test_no_key_is_made_beside_this_program(monkeypatch):
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(ROOT / "scripts" / "no such folder"))
    with pytest.raises(UserError, match="lies in the project"):
        private_keys.refuse_project(private_keys.key_path())


def test_a_key_inside_a_workflow_is_not_used_either(tmp_path, monkeypatch):
    private_keys.create_key()
    own = tmp_path / "results" / "mine.pem"
    own.parent.mkdir(mode=0o700)
    own.write_bytes(private_keys.key_path().read_bytes())
    own.chmod(0o600)
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(own))
    assert private_keys.load_key()
    (tmp_path / "Snakefile").write_text("")
    with pytest.raises(UserError, match=r"mine\.pem lies in the project"):
        private_keys.load_key()


def test_a_snakefile_in_the_home_folder_makes_no_project_of_it(tmp_path, monkeypatch):
    (tmp_path / "Snakefile").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / ".config" / "sealed-experts"))
    assert private_keys.create_key()


def test_a_symlink_into_a_workflow_is_seen_through(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "Snakefile").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "project")
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "link" / "home"))
    with pytest.raises(UserError, match="lies in the project"):
        private_keys.create_key()


# What is made


def test_a_new_key_has_every_algorithm_that_works_here():
    assert private_keys.create_key().algorithms == signing.available_algorithms() == ("ed25519", "ml-dsa-65")
    assert private_keys.key_path().with_suffix(".pub").read_text() == private_keys.load_key().public.pem


@pytest.mark.parametrize(
    ("chosen", "match"),
    [(["rsa"], "possible are ed25519, ml-dsa-65"), (["ml-dsa-65"], "needs ed25519"), ([], "needs ed25519")],
)
def test_other_choices_of_algorithms_are_refused(chosen, match):
    with pytest.raises(UserError, match=match):
        private_keys.create_key(algorithms=chosen)
    assert not private_keys.key_path().exists()


def test_a_key_that_fails_its_test_is_not_written(monkeypatch):
    def broken(_):
        raise UserError("this library is broken")

    monkeypatch.setattr(private_keys, "self_test", broken)
    with pytest.raises(UserError, match="broken"):
        private_keys.create_key()
    assert list(home_folder().rglob("*.pem")) == list(home_folder().rglob("*.json")) == []
