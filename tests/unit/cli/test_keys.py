"""`sealed-experts keys`, with text and with JSON output, including rotation and revocation end to end."""

import json
from pathlib import Path

import pytest

from sealed_experts.cli.main import main
from sealed_experts.files.home import home_folder
from sealed_experts.packages.keys import pkcs8, private_keys, signing
from sealed_experts.packages.keys.passphrase import VARIABLE
from sealed_experts.packages.keys.publisher import today
from sealed_experts.packages.keys.statements import rotation_statement
from sealed_experts.packages.keys.trust import load_trust
from tests.attacks import building


def run(capsys, *command: str, code: int = 0, shows: str = "") -> str:
    """Run a command and return its output. An error must be one line on standard error, after the output `shows`."""
    found = main([str(part) for part in ("keys", *command)])
    shown = capsys.readouterr()
    assert found == code, shown.err
    if code:
        assert shown.out == shows
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        return shown.err
    return shown.out


def package(folder: Path, name: str) -> Path:
    """Return a package that the current key signed with all its algorithms."""
    path = folder / name
    path.write_bytes(building.package(by=private_keys.load_key()))
    return path


def test_create_tests_every_algorithm_and_says_so(capsys):
    shown = run(capsys, "create").splitlines()
    public = private_keys.load_key().public
    assert shown == [
        f"made {private_keys.key_path()}; its public half is trusted here",
        f"fingerprint {public.fingerprint}",
        f"fingerprint of its ml-dsa-65 key {public.keys[1].fingerprint}",
        "tested: ed25519 and ml-dsa-65 sign and verify here",
    ]


def test_create_says_what_is_not_available(capsys, monkeypatch):
    monkeypatch.setattr(signing, "is_available", lambda name: name == "ed25519")
    assert "not available: ml-dsa-65" in run(capsys, "create")
    assert private_keys.load_key().public.algorithms == ("ed25519",)
    made = json.loads(run(capsys, "create", "--name", "second", "--json"))
    assert made["available_algorithms"] == {"ed25519": True, "ml-dsa-65": False}
    assert "no key of the algorithm" in run(
        capsys, "create", "--name", "third", "--algorithm", "ed25519", "--algorithm", "ml-dsa-65", code=1
    )


def test_create_for_programs(capsys):
    made = json.loads(run(capsys, "create", "--algorithm", "ed25519", "--json"))
    public = private_keys.load_key().public
    assert made["path"] == str(private_keys.key_path())
    assert made["keys"] == {"ed25519": public.fingerprint}
    assert (made["fingerprint"], made["status"], made["expires"]) == (public.fingerprint, "trusted", None)


def test_create_a_recipients_key(capsys, monkeypatch):
    from sealed_experts.packages.recipients.recipient_files import load_identity, load_recipient

    made = json.loads(run(capsys, "create", "--recipient", "--json"))
    path = home_folder() / "recipients" / "recipient.pem"
    assert (made["path"], path.stat().st_mode & 0o777) == (str(path), 0o600)
    assert load_identity(path).recipient == load_recipient(Path(made["public"]))
    assert load_recipient(Path(made["public"])).fingerprint == made["fingerprint"]
    assert "exists" in run(capsys, "create", "--recipient", code=1)
    assert not private_keys.key_path().exists()
    assert "for keys that sign" in run(capsys, "create", "--recipient", "--algorithm", "ed25519", code=1)
    monkeypatch.setenv(VARIABLE, "word")
    run(capsys, "create", "--recipient", "--name", "other")
    content = (path.parent / "other.pem").read_bytes()
    assert content.count(b"BEGIN ENCRYPTED PRIVATE KEY") == 2
    assert load_identity(path.parent / "other.pem", passphrase=b"word")


def test_export_has_one_block_an_algorithm_and_needs_no_passphrase(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "word")
    run(capsys, "create")
    monkeypatch.delenv(VARIABLE)
    shown = run(capsys, "export")
    assert shown.count("-----BEGIN PUBLIC KEY-----") == 2
    assert "PRIVATE" not in shown
    run(capsys, "export", "--output", tmp_path / "bank.pub")
    assert (tmp_path / "bank.pub").read_text() == shown
    assert "exists" in run(capsys, "export", "--output", tmp_path / "bank.pub", code=1)


@pytest.fixture
def public(tmp_path):
    path = tmp_path / "Bank.pub"
    path.write_text(building.key(second=True).public.pem)
    return path


def test_trust_shows_the_fingerprint_of_every_key(capsys, public):
    """A user who compares only the first would trust any second key that somebody added."""
    shown = run(capsys, "trust", public)
    for key in building.key(second=True).public.keys:
        assert key.fingerprint in shown
    assert "already trusted: bank" in run(capsys, "trust", public)


def test_trust_with_scopes_and_an_expiry_that_can_be_changed(capsys, public):
    day = str(today().replace(year=today().year + 1, day=1))
    shown = run(capsys, "trust", public, "--scope", "bank*", "--scope", "loan", "--expires", day)
    assert f"trusted: bank (for bank*, loan; until {day})" in shown
    assert f"already trusted: bank (for bank*, loan; until {day})" in run(capsys, "trust", public)
    assert f"(for tiny*; until {day})" in run(capsys, "trust", public, "--scope", "tiny*")
    assert "trusted: bank (for tiny*);" in run(capsys, "trust", public, "--expires", "never")
    assert "already trusted as bank" in run(capsys, "trust", public, "--name", "other", code=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--expires", "tomorrow"], "write it as 2030-12-31, or never"),
        (["--expires", "2020-01-01"], "that day is in the past"),
        (["--scope", "a/b"], "is not a pattern of names"),
        (["--scope", ""], "is not a pattern of names"),
        (["--name", "A B"], "cannot name a key"),
    ],
)
def test_mistakes_in_trusting_change_nothing(capsys, public, options, match):
    assert match in run(capsys, "trust", public, *options, code=1)
    assert len(load_trust()) == 0


def test_a_statement_brings_its_own_scopes(capsys, tmp_path):
    assert "keeps the scopes" in run(capsys, "trust", tmp_path / "rotation.json", "--scope", "x", code=1)


def test_list_for_people_and_programs(capsys, public, tmp_path):
    assert run(capsys, "list").splitlines() == [
        f"signs:   no key yet (`sealed-experts keys create` makes {private_keys.key_path()})",
        "trusted: nobody yet",
    ]
    run(capsys, "create")
    run(capsys, "rotate", "--output", tmp_path / "rotation.json")
    run(capsys, "trust", public, "--scope", "bank*")
    retired = next(private_keys.keys_folder().glob("*.retired-*.pem")).stem
    run(capsys, "revoke", "--name", retired, "--reason", "it leaked", "--output", tmp_path / "revocation.json")
    new, lines = private_keys.load_key().public, run(capsys, "list").splitlines()
    assert lines[0] == f"signs:   {private_keys.key_path()} {new.fingerprint}"
    assert lines[1].startswith(f"kept:    {retired} ")
    bank = building.key().public.fingerprint
    assert lines[2] == f"trusted: bank {bank} (for bank*)"
    assert lines[3].startswith("revoked: publisher ")
    assert lines[3].endswith("(revoked: it leaked)")
    assert lines[4] == f"trusted: publisher-{new.fingerprint[:8]} {new.fingerprint}"
    listed = json.loads(run(capsys, "list", "--json"))
    assert listed["signing_key"] == {"path": str(private_keys.key_path()), "fingerprint": new.fingerprint}
    assert [entry["status"] for entry in listed["trusted"]] == ["trusted", "revoked", "trusted"]
    assert listed["trusted"][2]["certified_by"] == listed["trusted"][1]["fingerprint"]


def test_a_damaged_key_does_not_hide_the_others_from_the_list(capsys):
    run(capsys, "create")
    run(capsys, "create", "--name", "second")
    private_keys.key_path("second").write_text("nonsense")
    lines = run(capsys, "list").splitlines()
    assert lines[0] == f"signs:   {private_keys.key_path()} {building.own_fingerprint()}"
    assert lines[1].startswith("kept:    second (unreadable")


def test_a_signing_key_that_cannot_be_used_does_not_hide_who_is_trusted(capsys, public):
    """A wide mode once hid everything else."""
    run(capsys, "create")
    run(capsys, "trust", public)
    (entry, bank), path = sorted(load_trust(), key=lambda each: each.name != "publisher"), private_keys.key_path()
    path.chmod(0o644)
    shows = (
        f"signs:   {path} cannot be used\ntrusted: bank {bank.fingerprint}\ntrusted: publisher {entry.fingerprint}\n"
    )
    assert "(mode 0644): chmod 600 it" in run(capsys, "list", code=1, shows=shows)
    assert main(["keys", "list", "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)
    assert listed["signing_key"] == {"path": str(path), "fingerprint": None}
    assert [each["name"] for each in listed["trusted"]] == ["bank", "publisher"]


def test_trust_for_programs(capsys, public, tmp_path):
    trusted = json.loads(run(capsys, "trust", public, "--scope", "bank*", "--json"))
    both = building.key(second=True).public
    assert trusted["keys"] == {key.algorithm: key.fingerprint for key in both.keys}
    assert (trusted["name"], trusted["scopes"], trusted["status"]) == ("bank", ["bank*"], "trusted")
    statement = rotation_statement(old=building.key(1, second=True), new=building.key(2, second=True))
    (tmp_path / "rotation.json").write_text(json.dumps(statement))
    followed = json.loads(run(capsys, "trust", tmp_path / "rotation.json", "--json"))
    assert (followed["certified_by"], followed["scopes"]) == (both.fingerprint, ["bank*"])


def test_rotation_and_revocation_between_two_people(capsys, tmp_path, monkeypatch):
    """A bank seals, rotates its key, seals again, and revokes the old key. A customer applies both statements."""
    ours, customer = str(home_folder()), str(tmp_path / "customer")
    run(capsys, "create")
    run(capsys, "export", "--output", tmp_path / "bank.pub")
    first = package(tmp_path, "first.tgsp")

    def verify(path: Path) -> int:
        monkeypatch.setenv("SEALED_EXPERTS_HOME", customer)
        code = main(["verify", str(path)])
        capsys.readouterr()
        return code

    assert verify(first) == 5
    run(capsys, "trust", tmp_path / "bank.pub", "--scope", "tiny*")
    assert verify(first) == 0

    monkeypatch.setenv("SEALED_EXPERTS_HOME", ours)
    done = json.loads(run(capsys, "rotate", "--output", tmp_path / "rotation.json", "--json"))
    second = package(tmp_path, "second.tgsp")
    assert verify(second) == 5
    shown = run(capsys, "trust", tmp_path / "rotation.json")
    assert f"trusted: bank-{done['new']['fingerprint'][:8]}, certified by the key {done['old']} (for tiny*)" in shown
    assert (verify(first), verify(second)) == (0, 0)

    monkeypatch.setenv("SEALED_EXPERTS_HOME", ours)
    retired = Path(done["retired"]).stem
    run(capsys, "revoke", "--name", retired, "--reason", "a stick was lost", "--output", tmp_path / "revocation.json")
    assert main(["verify", str(first)]) == 5
    assert "was revoked (a stick was lost)" in capsys.readouterr().err
    assert verify(first) == 0  # the customer has not heard of it yet
    shown = run(capsys, "revoke", "--statement", tmp_path / "revocation.json")
    assert "revoked: bank (a stick was lost)" in shown
    assert "still trusted: bank-" in shown
    assert "or run this again with --with-introduced" in shown
    assert (verify(first), verify(second)) == (5, 0)
    assert "was revoked here" in run(capsys, "trust", tmp_path / "bank.pub", code=1)
    shown = run(capsys, "revoke", "--statement", tmp_path / "revocation.json", "--with-introduced")
    assert "revoked too: bank-" in shown
    assert (verify(first), verify(second)) == (5, 5)


def test_a_revocation_in_advance(capsys, tmp_path):
    run(capsys, "create")
    shown = run(capsys, "revoke", "--in-advance", "--reason", "it may be lost", "--output", tmp_path / "some-day.json")
    assert shown.startswith(f"nothing is revoked yet. Anyone who has {tmp_path / 'some-day.json'} can revoke publisher")
    assert private_keys.load_key()
    assert "revoked: publisher (it may be lost)" in run(capsys, "revoke", "--statement", tmp_path / "some-day.json")
    assert "are for your own key" in run(
        capsys, "revoke", "--in-advance", "--statement", tmp_path / "some-day.json", code=1
    )
    assert "goes with --statement" in run(
        capsys, "revoke", "--with-introduced", "--reason", "x", "--output", tmp_path / "r.json", code=1
    )


def test_following_onto_a_publisher_that_is_trusted_says_so(capsys, tmp_path):
    """The message once said "certified by the key None"."""
    for number in (1, 2):
        (tmp_path / f"bank{number}.pub").write_text(building.key(number).public.pem)
        run(capsys, "trust", tmp_path / f"bank{number}.pub")
    statement = rotation_statement(old=building.key(1), new=building.key(2))
    (tmp_path / "rotation.json").write_text(json.dumps(statement))
    assert "already trusted: bank2, by its own key" in run(capsys, "trust", tmp_path / "rotation.json")


def test_revoke_needs_its_own_options(capsys, tmp_path):
    run(capsys, "create")
    assert "--reason is missing" in run(capsys, "revoke", "--output", tmp_path / "r.json", code=1)
    run(capsys, "revoke", "--output", tmp_path / "r.json", "--reason", "lost", "--json")
    assert "a statement holds all of that" in run(
        capsys, "revoke", "--statement", tmp_path / "r.json", "--reason", "lost", code=1
    )
    with pytest.raises(SystemExit) as usage:
        main(["keys", "revoke", "--reason", "lost"])
    assert usage.value.code == 2


def test_a_forged_statement_has_the_code_of_a_signature(capsys, tmp_path):
    run(capsys, "create")
    run(capsys, "rotate", "--output", tmp_path / "rotation.json")
    text = (tmp_path / "rotation.json").read_text()
    statement = json.loads(text)
    statement["signatures"]["old"]["ed25519"] = "00" * 64
    (tmp_path / "rotation.json").write_text(json.dumps(statement))
    assert "does not match" in run(capsys, "trust", tmp_path / "rotation.json", code=5)


def test_no_command_shows_a_private_half(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(pkcs8, "COST", 16)
    monkeypatch.setenv(VARIABLE, "correct horse")
    shown = run(capsys, "create") + run(capsys, "create", "--name", "second", "--json")
    secrets = [key.private_bytes_raw() for key in private_keys.load_key().private.values()]
    shown += run(capsys, "rotate", "--output", tmp_path / "rotation.json", "--json")
    secrets += [key.private_bytes_raw() for key in private_keys.load_key().private.values()]
    shown += run(capsys, "list") + run(capsys, "list", "--json") + run(capsys, "export")
    fingerprint = building.own_fingerprint()
    options = ["--reason", "lost", "--output", tmp_path / "revocation.json"]
    shown += run(capsys, "revoke", "--fingerprint", fingerprint, *options)
    monkeypatch.setenv(VARIABLE, "wrong horse")
    shown += run(capsys, "revoke", "--name", "second", "--reason", "x", "--output", tmp_path / "other.json", code=1)
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    for secret in secrets:
        assert secret.hex() not in shown + written
        assert repr(secret) not in shown
    assert "horse" not in shown + written
