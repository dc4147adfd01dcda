"""Publishers' files: one PEM block per algorithm, a passphrase that is expensive to guess, never inside a project."""

import itertools
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
from sealed_experts.files.home import home_folder
from sealed_experts.packages import model_signature
from sealed_experts.packages.keys import pem, private_keys, signing
from sealed_experts.packages.keys.passphrase import VARIABLE
from sealed_experts.packages.keys.pem import parse_private, parse_public, private_pem
from sealed_experts.packages.keys.sealing_key import settle_publisher
from sealed_experts.packages.recipients import recipient_files
from sealed_experts.packages.recipients.encryption import generate_identity
from sealed_experts.packages.recipients.own_identity import own_identity
from tests.attacks import building

ROOT = Path(__file__).resolve().parents[3]
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


P256 = ec.derive_private_key(7, ec.SECP256R1())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (block(LATTICE), "holds no Ed25519 key"),
        (block(CURVE) + block(CURVE), "holds two ed25519 keys"),
        (block(CURVE) + block(LATTICE) + block(LATTICE), "holds two ml-dsa-65 keys"),
        (block(CURVE) + block(P256), "publishers' keys are Ed25519, and optionally ML-DSA-65"),
        (block(CURVE) + b"a word", "is not a private key in PEM"),
        (b"a word\n" + block(CURVE), "is not a private key in PEM"),
        (block(CURVE)[:-10], "is not a private key in PEM"),
        (block(CURVE).replace(b"BEGIN PRIVATE", b"BEGIN PUBLIC"), "is not a private key in PEM"),
        (public(CURVE), "must hold PKCS8 private keys alone"),
        (block(CURVE) + block(LATTICE, BestAvailableEncryption(b"word")), "all or none of them encrypted"),
    ],
    ids=itertools.count(),  # what is encrypted has other bytes each time, and every worker must have the same names
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
    """scrypt with N = 2^14, r = 8, p = 5. The library's own form takes less than a millisecond per guess."""
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
    """Snakemake needs it whenever it reads the rules, and nobody can type a passphrase then."""
    key = private_keys.create_key(secret=b"word")
    assert private_keys.ensure_publisher_key() == building.own_fingerprint() == key.fingerprint
    private_keys.key_path().with_suffix(".pub").unlink()
    assert building.own_fingerprint() == key.fingerprint
    # A file of the same key from elsewhere does not tell; the .pub file beside it does.
    path = write(private_pem(BOTH.values(), passphrase=b"word"), "other")
    with pytest.raises(UserError, match="has a passphrase"):
        private_keys.public_half(path)
    path.with_suffix(".pub").write_bytes(public(*BOTH.values()))
    assert private_keys.public_half(path).raw == CURVE.public_key().public_bytes_raw()


def test_public_halves_that_are_not_the_private_ones_are_refused():
    """They are read before the passphrase opens the file. The private keys must then match them."""
    content = private_pem(BOTH.values(), passphrase=b"word")
    assert raw(parse_private(content + public(*BOTH.values()), where="file", secret=b"word")) == raw(BOTH)
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    for stated in (public(CURVE), public(other, LATTICE)):
        with pytest.raises(UserError, match="states other public keys"):
            parse_private(content + stated, where="file", secret=b"word")
    with pytest.raises(UserError, match="must hold PKCS8 private keys alone"):
        parse_private(private_pem(BOTH.values(), passphrase=None) + public(CURVE, LATTICE), where="file", secret=None)


def test_a_missing_or_stale_public_file_is_mended_when_the_key_is_opened(monkeypatch):
    monkeypatch.setenv(VARIABLE, "word")
    key = private_keys.create_key()
    beside = private_keys.key_path().with_suffix(".pub")
    for stale in (None, private_keys.create_key(name="other").pem):
        beside.unlink() if stale is None else beside.write_text(stale)
        assert settle_publisher({"bank": ()}, create=True) == key.fingerprint
        assert beside.read_text() == key.pem


@pytest.mark.parametrize(("given", "match"), [("", f"set {VARIABLE}"), ("wrong", "the passphrase does not open")])
def test_a_key_that_jobs_could_not_open_is_refused_before_the_first_job(monkeypatch, given, match):
    """The error once came only in the sealing job, after hours of training. A dry-run needs no passphrase."""
    key = private_keys.create_key(secret=b"word")
    monkeypatch.setenv(VARIABLE, given)
    assert settle_publisher({"bank": ()}, create=False) == key.fingerprint
    with pytest.raises(UserError, match=match) as caught:
        settle_publisher({"bank": ()}, create=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_passphrase_in_the_environment_is_none(empty, monkeypatch):
    if empty is not None:
        monkeypatch.setenv(VARIABLE, empty)
    private_keys.create_key()
    assert not pem.is_encrypted(private_keys.key_path().read_bytes())


def typed(command: list[str], *answers: str) -> tuple[int, str]:
    """Run a command in a separate terminal, type the answers, and return its exit code and its output."""
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
            answer = waiting.pop(0)
            os.write(terminal, answer.encode() + (b"" if answer == "\x04" else b"\n"))
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


def test_ctrl_d_at_the_prompt_is_one_line():
    """It once ended in an EOFError's traceback."""
    private_keys.create_key(secret=b"word")
    code, shown = typed(["keys", "rotate", "--output", str(home_folder() / "statement.json")], "\x04")
    assert code == 1
    assert "error: no passphrase was given" in shown
    assert "Traceback" not in shown


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
@pytest.mark.parametrize("place", ["output/keys", ".", "a/b/c"])
def test_no_key_is_made_inside_a_workflow(tmp_path, monkeypatch, snakefile, place):
    (tmp_path / snakefile).parent.mkdir(exist_ok=True)
    (tmp_path / snakefile).write_text("")
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / place))
    for make in (private_keys.create_key, private_keys.ensure_publisher_key):
        with pytest.raises(UserError, match=r"is in the project .*SEALED_EXPERTS_HOME"):
            make()
    assert list(tmp_path.rglob("*.pem")) == list(tmp_path.rglob("*.json")) == []


def test_no_key_is_made_beside_this_program(monkeypatch):
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(ROOT / "scripts" / "no such folder"))
    with pytest.raises(UserError, match="is in the project"):
        private_keys.refuse_project(private_keys.key_path())


def test_a_key_inside_a_workflow_is_not_used_either(tmp_path, monkeypatch):
    private_keys.create_key()
    own = tmp_path / "output" / "mine.pem"
    own.parent.mkdir(mode=0o700)
    own.write_bytes(private_keys.key_path().read_bytes())
    own.chmod(0o600)
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(own))
    assert private_keys.load_key()
    (tmp_path / "Snakefile").write_text("")
    with pytest.raises(UserError, match=r"mine\.pem is in the project"):
        private_keys.load_key()


def test_a_snakefile_in_the_home_folder_makes_no_project_of_it(tmp_path, monkeypatch):
    (tmp_path / "Snakefile").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / ".config" / "sealed-experts"))
    assert private_keys.create_key()


def test_a_project_is_one_in_the_home_folder_too(tmp_path, monkeypatch):
    """If ${HOME} was the project itself, a key inside it was not noticed."""
    (tmp_path / "Snakefile").write_text("")
    (tmp_path / "home").mkdir()
    for home in (tmp_path, tmp_path / "home"):
        monkeypatch.setenv("HOME", str(home))
        for place in (home / "keys", home / ".config" / "other", home):
            with pytest.raises(UserError, match=f"is in the project {tmp_path},"):
                private_keys.refuse_project(place / "key.pem")
    monkeypatch.setenv("HOME", str(ROOT))  # not even the default place, where that is this program's own folder
    with pytest.raises(UserError, match="is in the project"):
        private_keys.refuse_project(ROOT / ".config" / "sealed-experts" / "keys" / "key.pem")


def test_no_key_lies_among_results(tmp_path, monkeypatch):
    """With --directory, the folder of results has no Snakefile above it."""
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "results" / "home"))
    with pytest.raises(UserError, match=r"is in .*results, where a private key would be published"):
        private_keys.create_key()
    assert list(tmp_path.rglob("*.pem")) == []


def p256(path: Path) -> None:
    path.write_bytes(block(P256))
    path.chmod(0o600)


READERS = {
    "publisher": (lambda path: shutil.copy2(write(block(CURVE), "copied"), path), private_keys.load_key),
    "recipient": (lambda path: recipient_files.save_identity(path, generate_identity()), recipient_files.load_identity),
    "model signing": (p256, model_signature.read_private_key),
}


@pytest.mark.parametrize(("make", "read"), READERS.values(), ids=READERS)
def test_private_files_of_every_kind_are_held_to_the_same(tmp_path, make, read):
    """Recipients' and model-signing keys were once read even in a project, or in folders that others can write to."""
    path = tmp_path / "own" / "key.pem"
    path.parent.mkdir(mode=0o700)
    make(path)
    assert read(path)
    link = tmp_path / "open" / "link.pem"
    link.parent.mkdir()
    link.symlink_to(path)
    (path.parent / "way.pem").symlink_to(link)
    assert read(link)
    link.parent.chmod(0o777)
    for way in (link, path.parent / "way.pem"):  # whoever can write there can put another key in its place
        with pytest.raises(UserError, match=f"other users can write to {link.parent}"):
            read(way)
    path.chmod(0o640)
    with pytest.raises(UserError, match=r"other users can use .*chmod 600"):
        read(path)
    path.chmod(0o600)
    path.parent.chmod(0o770)
    with pytest.raises(UserError, match="other users can write"):
        read(path)
    path.parent.chmod(0o700)
    for place in ("results", "project"):
        (tmp_path / place).mkdir()
        (tmp_path / "project" / "Snakefile").write_text("") if place == "project" else None
        shutil.copy2(path, tmp_path / place / "key.pem")
        with pytest.raises(UserError, match=rf"key\.pem is in .*{place}"):
            read(tmp_path / place / "key.pem")
    for other in (tmp_path / "none.pem", path.parent):
        with pytest.raises(UserError, match=r"does not exist|not a regular file"):
            read(other)
    path.write_bytes(path.read_bytes() + b"\n" * 20_000)
    with pytest.raises(UserError, match="larger than 16384 bytes"):
        read(path)


def test_a_loop_of_symlinks_ends(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with pytest.raises(UserError, match="cannot read the private key"):
        private_keys.load_key(tmp_path / "one")


@pytest.mark.parametrize("variable", ["SEALED_EXPERTS_KEY", "SEALED_EXPERTS_IDENTITY"])
def test_the_home_of_an_unknown_user_is_one_line(monkeypatch, variable):
    """It once ended in a RuntimeError's traceback."""
    monkeypatch.setenv(variable, "~no-such-user/key.pem")
    with pytest.raises(UserError, match=f"{variable}=~no-such-user"):
        private_keys.key_path() if variable == "SEALED_EXPERTS_KEY" else own_identity()


def test_a_symlink_into_a_workflow_is_seen_through(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "Snakefile").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "project")
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "link" / "home"))
    with pytest.raises(UserError, match="is in the project"):
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


def test_no_key_is_made_under_the_name_of_a_retired_one():
    """It could sign nothing, and `rotate` would refuse it too."""
    with pytest.raises(UserError, match="is reserved for retired keys"):
        private_keys.create_key(name="my.retired-key")
    assert not home_folder().joinpath("keys", "my.retired-key.pem").exists()


def test_a_key_that_fails_its_test_is_not_written(monkeypatch):
    def broken(_):
        raise UserError("this library is broken")

    monkeypatch.setattr(private_keys, "self_test", broken)
    with pytest.raises(UserError, match="broken"):
        private_keys.create_key()
    assert list(home_folder().rglob("*.pem")) == list(home_folder().rglob("*.json")) == []
