"""`sealed-experts keys` says which key signs, which one is retired, and which one opens packages."""

import json
import shlex

import pytest

from sealed_experts.cli.main import main
from sealed_experts.packages.keys import private_keys
from sealed_experts.packages.keys.key_changes import revoke_in_advance, revoke_key, rotate_key
from sealed_experts.packages.keys.trust import load_trust
from tests.attacks import building, expert_building
from tests.unit.cli.test_keys import run


def command_in(text: str) -> list[str]:
    """Return the arguments of the first command that a message quotes."""
    words = shlex.split(text.split("`sealed-experts keys revoke", 1)[1].split("`", 1)[0])
    return ["revoke", *words]


def test_rotating_says_how_the_old_key_is_revoked(capsys, tmp_path, monkeypatch):
    """After a rotation, the key's name means the new key, and no message gave the old key's new name."""
    monkeypatch.chdir(tmp_path)
    run(capsys, "create", "--name", "bank")
    old = private_keys.public_half(private_keys.key_path("bank")).fingerprint
    shown = run(capsys, "rotate", "--name", "bank", "--output", "rotation.json")
    lines = [line for line in shown.splitlines() if f"--name bank.retired-{old[:8]} " in line]
    assert len(lines) == 1
    run(capsys, *command_in(lines[0]))
    assert load_trust().find(old).status() == "revoked"
    assert [entry.status() for entry in load_trust() if entry.fingerprint != old] == ["trusted"]


def test_a_key_that_was_rotated_in_is_not_revoked_in_the_old_ones_place(capsys, tmp_path, monkeypatch):
    """`revoke --name bank` after `rotate --name bank` revoked the new key, which cannot be undone."""
    monkeypatch.chdir(tmp_path)
    run(capsys, "create", "--name", "bank")
    done = json.loads(run(capsys, "rotate", "--name", "bank", "--output", "rotation.json", "--json"))
    options = ["--name", "bank", "--reason", "lost", "--output", "r.json"]
    refusal = run(capsys, "revoke", *options, code=1)
    new = done["new"]["fingerprint"]
    assert f"--name bank.retired-{done['old'][:8]} " in refusal
    assert f"--name bank --fingerprint {new} " in refusal
    assert done["revoke_old"] in refusal
    assert "has the fingerprint" in run(capsys, "revoke", *options, "--fingerprint", done["old"], code=1)
    assert {entry.status() for entry in load_trust()} == {"trusted"}
    assert not (tmp_path / "r.json").exists()
    run(capsys, "revoke", *options, "--fingerprint", new)
    assert load_trust().find(new).status() == "revoked"


def test_when_the_old_key_is_revoked_the_new_one_needs_no_fingerprint(tmp_path):
    private_keys.create_key()
    done = rotate_key(output=tmp_path / "rotation.json")
    revoke_in_advance(reason="it may be lost", output=tmp_path / "some-day.json")
    revoke_key(name=done.retired.stem, reason="it leaked", output=tmp_path / "old.json")
    assert revoke_key(reason="it leaked too", output=tmp_path / "new.json").fingerprint == done.new.fingerprint


def test_a_key_elsewhere_is_revoked_through_the_variable(capsys, tmp_path, monkeypatch):
    own = tmp_path / "my keys"
    own.mkdir(mode=0o700)
    private_keys.create_key()
    private_keys.key_path().rename(own / "Bank.pem")
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(own / "Bank.pem"))
    done = json.loads(run(capsys, "rotate", "--output", tmp_path / "rotation.json", "--json"))
    assert done["signs"]
    variable, *command = shlex.split(done["revoke_old"])
    assert variable == f"SEALED_EXPERTS_KEY={done['retired']}"
    assert command[:3] == ["sealed-experts", "keys", "revoke"]


@pytest.mark.parametrize("command", [["create"], ["rotate", "--output", "rotation.json"]])
def test_a_key_that_does_not_sign_says_how_to_sign_with_it(capsys, tmp_path, monkeypatch, command):
    """`keys create --name bank` made a key that never signed, and `keys rotate` said that it signs from now on."""
    monkeypatch.chdir(tmp_path)
    if command[0] == "rotate":
        run(capsys, "create", "--name", "bank")
    hint = f"to sign with it: export SEALED_EXPERTS_KEY={private_keys.key_path('bank')}"
    shown = run(capsys, *command, "--name", "bank")
    assert shown.splitlines()[-1].endswith(hint)
    assert "signs from now on" not in shown
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(private_keys.key_path("bank")))
    again = run(capsys, "rotate", "--output", "again.json")
    assert "signs from now on" in again
    assert "export SEALED_EXPERTS_KEY" not in again


def test_the_first_key_signs_and_no_hint_is_given(capsys):
    assert "export" not in run(capsys, "create")
    assert json.loads(run(capsys, "create", "--name", "second", "--json"))["signs"] is False


@pytest.mark.parametrize("folder", [False, True])
def test_a_fresh_home_has_one_message_for_a_missing_key(capsys, tmp_path, folder):
    """Without the folder of keys, the message once said that it cannot be read."""
    if folder:
        private_keys.keys_folder().mkdir(parents=True, mode=0o700)
    path = tmp_path / "tiny.expert"
    path.write_bytes(expert_building.sealed(building.package(by=building.key()), number=1))
    expected = (
        f"error: the private key {private_keys.key_path()} does not exist: `sealed-experts keys create` makes one"
    )
    for command in (
        ["keys", "export"],
        ["publish", str(path), "--output", str(tmp_path)],
        ["keys", "rotate", "--output", str(tmp_path / "r.json")],
    ):
        assert main(command) == 1
        assert capsys.readouterr().err.startswith(expected), command


def test_a_recipients_key_is_listed_and_export_says_where_its_public_half_is(capsys):
    """`keys list` once did not show it, and `keys export` once said that `keys create` makes one."""
    made = json.loads(run(capsys, "create", "--recipient", "--name", "reader", "--json"))
    assert f"opens:   reader {made['fingerprint']} (public half: {made['public']})" in run(capsys, "list").splitlines()
    (listed,) = json.loads(run(capsys, "list", "--json"))["recipients"]
    assert listed == {"name": "reader", "public": made["public"], "fingerprint": made["fingerprint"]}
    assert f"give {made['public']} to everyone" in run(capsys, "export", "--name", "reader", code=1)
    assert "--identity" in run(capsys, "create", "--recipient", "--name", "other")
