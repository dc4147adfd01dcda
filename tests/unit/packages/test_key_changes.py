"""Rotate and revoke keys end to end, and every way to manipulate the statements for others."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.home import home_folder
from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys import key_changes, pkcs8, private_keys, trust
from sealed_experts.packages.keys.key_changes import (
    follow_revocation,
    follow_rotation,
    revoke_in_advance,
    revoke_key,
    rotate_key,
)
from sealed_experts.packages.keys.passphrase import VARIABLE
from sealed_experts.packages.keys.publisher import today
from sealed_experts.packages.keys.sealing_key import settle_publisher
from sealed_experts.packages.keys.statements import (
    Revocation,
    Rotation,
    read_statement,
    revocation_statement,
    rotation_statement,
)
from tests.attacks import building

OLD, NEW, MALLORY = (building.key(number, second=True) for number in (1, 2, 3))


def written(path: Path, statement: object) -> Path:
    path.write_text(json.dumps(statement))
    return path


@pytest.fixture
def rotation(tmp_path):
    return written(tmp_path / "rotation.json", rotation_statement(old=OLD, new=NEW))


@pytest.fixture
def revocation(tmp_path):
    return written(tmp_path / "revocation.json", revocation_statement(key=OLD, reason="it was lost"))


def accepted(*signers) -> str:
    """Return whose signatures these are, according to the trust store on disk."""
    presented = [(key.algorithm, key.raw) for signer in signers for key in signer.public.keys]
    return trust.load_trust().publisher_of(presented).name


# One's own key


def test_rotating_puts_a_new_key_in_place_and_keeps_the_old_one(tmp_path):
    old = private_keys.create_key()
    before = private_keys.key_path().read_bytes()
    done = rotate_key(output=tmp_path / "rotation.json")
    assert building.own_fingerprint() == private_keys.ensure_publisher_key() == done.new.fingerprint != old.fingerprint
    assert done.retired.read_bytes() == before
    assert done.retired.stat().st_mode & 0o777 == private_keys.key_path().stat().st_mode & 0o777 == 0o600
    assert done.new.certified_by == old.fingerprint
    assert {entry.fingerprint for entry in trust.load_trust()} == {old.fingerprint, done.new.fingerprint}
    with pytest.raises(UserError, match="was retired: sign with the key that replaced it"):
        private_keys.load_key(done.retired)
    assert json.loads(done.retired.with_suffix(".rotation.json").read_text()) == json.loads(
        (tmp_path / "rotation.json").read_text()
    )


def test_rotating_a_key_of_ed25519_alone_adds_the_second_algorithm(tmp_path):
    private_keys.create_key(algorithms=["ed25519"])
    done = rotate_key(output=tmp_path / "rotation.json")
    assert (done.old.algorithms, done.new.algorithms) == (("ed25519",), ("ed25519", "ml-dsa-65"))


def test_a_key_elsewhere_is_rotated_where_it_is(tmp_path, monkeypatch):
    own = tmp_path / "safe"
    own.mkdir(mode=0o700)
    private_keys.create_key()
    os.rename(private_keys.key_path(), own / "My Key.pem")
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(own / "My Key.pem"))
    done = rotate_key(output=tmp_path / "rotation.json")
    assert done.path == own / "My Key.pem"
    assert done.retired.parent == own
    assert private_keys.ensure_publisher_key() == done.new.fingerprint


def test_rotating_twice_keeps_both_former_keys(tmp_path):
    private_keys.create_key()
    kept = {rotate_key(output=tmp_path / f"{number}.json").retired for number in range(2)}
    assert len(kept) == 2
    assert set(private_keys.keys_folder().glob("*.retired-*.pem")) == kept


def every_cut(monkeypatch, tmp_path, *, prepare, work):
    """Cut `work` short at its first change of a file's name, in a new home at its second, and so on to its end.

    Yields:
        What `prepare` has returned, the names that were changed, and whether it was cut.
    """
    real, cut, step = os.replace, True, 0
    while cut:
        monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / f"home {step}"))
        prepared, replaced = prepare(), []

        def crash(source, target, *, step=step, replaced=replaced):
            if len(replaced) == step:
                raise KeyboardInterrupt
            replaced.append(Path(target).name)
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", crash)
            try:
                work()
                cut = False
            except KeyboardInterrupt:
                pass
        yield prepared, replaced, cut
        step += 1


@pytest.mark.parametrize("secret", [None, b"word"])
def test_a_rotation_cut_short_leaves_a_key_to_sign_with(tmp_path, monkeypatch, secret):
    """Each write is interrupted in turn. The current key is always complete and trusted, and the old one is kept.

    With a passphrase, the fingerprint once came from a .pub file that already belonged to the next key.
    """
    monkeypatch.setattr(pkcs8, "COST", 16)
    if secret:
        monkeypatch.setenv(VARIABLE, secret.decode())
    cuts = 0
    for old, replaced, cut in every_cut(
        monkeypatch,
        tmp_path,
        prepare=lambda: private_keys.create_key(secret=secret),
        work=lambda: rotate_key(output=home_folder() / "rotation.json"),
    ):
        cuts += cut
        _check_rotation(old, replaced, cut)
    assert cuts > 2


def _check_rotation(old, replaced, cut):
    """Check what a rotation left behind, and that a second one goes on from there."""
    signing, output = private_keys.ensure_publisher_key(), home_folder() / "rotation.json"
    assert private_keys.load_key().public.fingerprint == signing
    assert settle_publisher({}, create=True) == signing
    assert private_keys.key_path().with_suffix(".pub").read_text() == private_keys.load_key().public.pem
    assert (signing == old.fingerprint) == ("publisher.pem" not in replaced)
    found = {private_keys.unlocked(path)[0].public.fingerprint for path in private_keys.keys_folder().glob("*.pem")}
    assert old.fingerprint in found
    introduced = [read_statement(path).new for path in private_keys.keys_folder().glob("*.rotation.json")]
    assert all(keys[0].fingerprint == signing for keys in introduced)
    if cut:
        assert not output.exists()
        assert rotate_key(output=output).old.fingerprint == signing
    assert [path for path in private_keys.keys_folder().iterdir() if path.name.endswith((".tmp", ".staged"))] == []
    if signing != old.fingerprint:  # the statement of the rotation that was cut short is there all the same
        (first,) = private_keys.keys_folder().glob(f"*{old.fingerprint[:8]}.rotation.json")
        assert read_statement(first).old == old.keys


def test_what_a_killed_command_left_is_cleared_up(tmp_path):
    """A partly written private key once stayed for ever, and so did a statement that made others trust a lost key."""
    old = private_keys.create_key()
    folder = private_keys.keys_folder()
    killed = folder / ".publisher.pem.0123456789abcdef.tmp"
    killed.write_bytes(private_keys.key_path().read_bytes())
    staged = folder / f".publisher.retired-{old.fingerprint[:8]}.rotation.json.staged"
    written(staged, rotation_statement(old=OLD, new=NEW))
    foreign = folder / ".notes.0123456789abcdef.tmp"
    foreign.write_text("mine")
    private_keys.create_key(name="second")
    assert not killed.exists()
    assert not staged.exists()
    assert foreign.exists()
    assert list(folder.glob("*.rotation.json")) == []


@pytest.mark.parametrize("output", ["file/below/out.json", "/proc/no such folder/out.json"])
@pytest.mark.parametrize("change", [rotate_key, lambda output: revoke_key(output=output, reason="it was lost")])
def test_a_statement_that_cannot_be_written_changes_nothing(tmp_path, change, output):
    """`rotate` once put the new key in place first, and `revoke` ended in a traceback."""
    key = private_keys.create_key()
    (tmp_path / "file").write_text("")
    before = sorted(home_folder().rglob("*.*"))
    with pytest.raises(UserError, match="cannot write"):
        change(output=tmp_path / output)
    assert sorted(home_folder().rglob("*.*")) == before
    assert private_keys.ensure_publisher_key() == key.fingerprint


def test_rotating_ones_own_key_keeps_its_scopes_and_its_expiry(tmp_path):
    expires = today().replace(year=today().year + 1, day=1)
    key = trust.trust_publisher(replace(private_keys.create_key(), scopes=("bank*",), expires=expires))
    done = [rotate_key(output=tmp_path / f"{number}.json") for number in range(2)]
    assert [(each.new.scopes, each.new.expires) for each in done] == [(("bank*",), expires)] * 2
    assert done[1].new.ancestors == (done[0].new.fingerprint, key.fingerprint)
    assert trust.load_trust().find(done[1].new.fingerprint) == done[1].new


def test_an_expired_key_is_not_rotated(tmp_path):
    """The new key would be expired too, or the expiry would mean nothing."""
    key = private_keys.create_key()
    trust.trust_publisher(replace(key, expires=today().replace(year=today().year - 1, day=1)))
    with pytest.raises(UserError, match=r"expired here on .*keys trust.*--expires"):
        rotate_key(output=tmp_path / "rotation.json")
    assert not (tmp_path / "rotation.json").exists()


def test_a_revocation_written_in_advance_revokes_nothing_until_it_is_followed(tmp_path):
    key = private_keys.create_key()
    assert revoke_in_advance(reason="it may be lost", output=tmp_path / "some-day.json").fingerprint == key.fingerprint
    assert (tmp_path / "some-day.json").stat().st_mode & 0o777 == 0o600  # whoever has it can revoke the key
    assert private_keys.ensure_publisher_key() == key.fingerprint
    assert follow_revocation(tmp_path / "some-day.json")[0].revoked == "it may be lost"
    with pytest.raises(UserError, match="was revoked"):
        private_keys.load_key()


@pytest.mark.parametrize("change", [rotate_key, lambda output: revoke_key(output=output, reason="it was lost")])
def test_an_existing_output_is_kept_and_nothing_happens(tmp_path, change):
    private_keys.create_key()
    before = {path: path.read_bytes() for path in home_folder().rglob("*.*") if path.suffix in (".pem", ".json")}
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(UserError, match=r"out\.json exists"):
        change(output=tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "mine"
    assert {path: path.read_bytes() for path in before} == before


def test_revoking_ones_own_key(tmp_path):
    key = private_keys.create_key()
    entry = revoke_key(reason="the laptop was stolen", output=tmp_path / "revocation.json")
    assert (entry.fingerprint, entry.status()) == (key.fingerprint, "revoked")
    assert not private_keys.key_path().exists()
    with pytest.raises(UserError, match="was retired"):
        private_keys.load_key(next(private_keys.keys_folder().glob("*.retired-*.pem")))
    assert read_statement(tmp_path / "revocation.json") == Revocation(key=key.keys, reason="the laptop was stolen")
    other = private_keys.create_key(name="second")
    assert private_keys.load_key(private_keys.key_path("second")).public.fingerprint == other.fingerprint


def test_a_revocation_cut_short_can_be_repeated(tmp_path, monkeypatch):
    marked = 0
    for key, _, cut in every_cut(
        monkeypatch,
        tmp_path,
        prepare=private_keys.create_key,
        work=lambda: revoke_key(reason="it was lost", output=home_folder() / "first.json"),
    ):
        if trust.load_trust().find(key.fingerprint).status() == "revoked":
            marked += cut
            with pytest.raises(UserError, match=r"was revoked|does not exist"):
                private_keys.load_key()
        if cut:
            assert revoke_key(reason="it was lost", output=home_folder() / "second.json").revoked == "it was lost"
        assert not private_keys.key_path().exists()
        assert trust.load_trust().find(key.fingerprint).status() == "revoked"
    assert marked > 0


def test_a_copy_of_a_revoked_key_signs_nothing(tmp_path, monkeypatch):
    private_keys.create_key()
    copy = private_keys.keys_folder() / "copy.pem"
    copy.write_bytes(private_keys.key_path().read_bytes())
    copy.chmod(0o600)
    revoke_key(reason="it was lost", output=tmp_path / "revocation.json")
    monkeypatch.setenv("SEALED_EXPERTS_KEY", str(copy))
    for use in (private_keys.load_key, private_keys.ensure_publisher_key):
        with pytest.raises(UserError, match=r"was revoked \(it was lost\)"):
            use()


def test_a_retired_key_can_be_revoked_later(tmp_path):
    old = private_keys.create_key()
    done = rotate_key(output=tmp_path / "rotation.json")
    revoke_key(name=done.retired.stem, reason="it leaked", output=tmp_path / "revocation.json")
    assert trust.load_trust().find(old.fingerprint).status() == "revoked"
    assert private_keys.ensure_publisher_key() == done.new.fingerprint
    assert done.retired.exists()


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "\x1b[31mred", "\u202etxt", "x" * 201])
def test_a_reason_is_one_visible_line(tmp_path, reason):
    private_keys.create_key()
    with pytest.raises(UserError, match="must be one line of visible text"):
        revoke_key(reason=reason, output=tmp_path / "revocation.json")
    assert not (tmp_path / "revocation.json").exists()
    assert private_keys.load_key()


def test_a_retired_or_revoked_key_is_not_rotated(tmp_path):
    """Its statement would introduce a key that nobody may trust."""
    private_keys.create_key()
    done = rotate_key(output=tmp_path / "first.json")
    with pytest.raises(UserError, match="was retired"):
        rotate_key(name=done.retired.stem, output=tmp_path / "second.json")
    copy = private_keys.keys_folder() / "copy.pem"
    copy.write_bytes(private_keys.key_path().read_bytes())
    copy.chmod(0o600)
    revoke_key(reason="it was lost", output=tmp_path / "third.json", fingerprint=done.new.fingerprint)
    with pytest.raises(UserError, match=r"was revoked \(it was lost\)"):
        rotate_key(name="copy", output=tmp_path / "second.json")
    assert not (tmp_path / "second.json").exists()


@pytest.mark.parametrize("change", [rotate_key, lambda output: revoke_key(output=output, reason="it was lost")])
def test_nothing_is_written_where_others_can_write(tmp_path, change):
    """Not even the lock: it would follow a symlink that somebody else put there."""
    private_keys.create_key()
    (private_keys.keys_folder() / ".lock").unlink()
    (tmp_path / "victim").write_text("mine")
    (private_keys.keys_folder() / ".lock").symlink_to(tmp_path / "victim")
    private_keys.keys_folder().chmod(0o777)
    with pytest.raises(UserError, match="other users can write"):
        change(output=tmp_path / "out.json")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "out.json").exists()


def test_statements_hold_nothing_private(tmp_path):
    private_keys.create_key()
    private = [key.private_bytes_raw() for key in private_keys.load_key().private.values()]
    done = rotate_key(output=tmp_path / "rotation.json")
    private += [key.private_bytes_raw() for key in private_keys.load_key().private.values()]
    revoke_key(reason="it was lost", output=tmp_path / "revocation.json", fingerprint=done.new.fingerprint)
    public_files = [path for path in [*home_folder().rglob("*"), *tmp_path.rglob("*")] if path.suffix != ".pem"]
    for path in (path for path in public_files if path.is_file()):
        content = path.read_bytes()
        assert not any(secret in content or secret.hex().encode() in content for secret in private), path


# Another's key


def test_whoever_trusts_the_old_key_follows_to_the_new_one(rotation):
    expires = today().replace(year=today().year + 1, day=1)
    trust.trust_publisher(replace(OLD.public, name="bank", scopes=("bank*",), expires=expires))
    entry = follow_rotation(rotation)
    assert accepted(NEW) == entry.name == f"bank-{NEW.public.fingerprint[:8]}"
    assert (entry.scopes, entry.expires) == (("bank*",), expires)  # a rotation widens nothing
    assert accepted(OLD) == "bank"
    assert follow_rotation(rotation) == entry


def test_who_trusts_an_old_key_of_one_algorithm_can_follow_too(rotation):
    trust.trust_publisher(building.key(1).public)
    assert follow_rotation(rotation, name="bank").keys == NEW.public.keys


def test_following_again_does_not_undo_what_was_changed_since(rotation):
    trust.trust_publisher(replace(OLD.public, name="bank"))
    entry = trust.trust_publisher(replace(follow_rotation(rotation), scopes=("bank*",)))
    assert follow_rotation(rotation) == entry
    trust.mark_revoked(entry, reason="it was lost")
    with pytest.raises(SignatureError, match="was revoked"):
        follow_rotation(rotation)


def test_who_does_not_trust_the_old_key_follows_nobody(rotation):
    with pytest.raises(UserError, match="not trusted here"):
        follow_rotation(rotation)
    assert len(trust.load_trust()) == 0


def test_a_stolen_key_that_is_revoked_introduces_nobody(rotation, revocation):
    trust.trust_publisher(replace(OLD.public, name="bank"))
    follow_revocation(revocation)
    with pytest.raises(SignatureError, match=r"revoked \(it was lost\)"):
        follow_rotation(rotation)
    with pytest.raises(SignatureError, match="not trusted"):
        accepted(NEW)


def test_an_expired_key_introduces_nobody(rotation):
    trust.trust_publisher(replace(OLD.public, name="bank", expires=today().replace(year=today().year - 1, day=1)))
    with pytest.raises(SignatureError, match="expired here"):
        follow_rotation(rotation)


def test_a_revocation_is_followed_and_names_whom_the_key_introduced(rotation, revocation):
    trust.trust_publisher(replace(OLD.public, name="bank"))
    introduced = follow_rotation(rotation)
    entry, followers = follow_revocation(revocation)
    assert (entry.name, entry.revoked, followers) == ("bank", "it was lost", (introduced,))
    with pytest.raises(SignatureError, match=r"revoked \(it was lost\)"):
        accepted(OLD)
    assert accepted(NEW) == introduced.name


@pytest.mark.parametrize("ever_trusted", [True, False])
def test_a_revocation_of_a_key_that_nobody_trusts_is_kept(revocation, ever_trusted):
    """It was once ignored after `untrust`, so an old public file could be trusted again later."""
    if ever_trusted:
        trust.trust_publisher(replace(OLD.public, name="bank"))
        trust.untrust_key("bank")
    entry, introduced = follow_revocation(revocation)
    assert (entry.name, entry.keys, entry.revoked) == (
        f"revoked-{OLD.public.fingerprint[:8]}",
        OLD.public.keys,
        "it was lost",
    )
    assert introduced == ()
    with pytest.raises(UserError, match=r"was revoked here \(it was lost\)"):
        trust.trust_publisher(replace(OLD.public, name="bank"))
    assert follow_revocation(revocation) == (entry, ())


def test_a_revocation_after_untrust_names_whom_the_key_introduced(rotation, revocation):
    trust.trust_publisher(replace(OLD.public, name="bank"))
    introduced = follow_rotation(rotation)
    trust.untrust_key("bank")
    assert follow_revocation(revocation)[1] == (introduced,)


def followed_chain(folder: Path, *numbers: int) -> list:
    """Trust the first key and follow to each of the others in turn; return their entries."""
    keys = [building.key(number) for number in numbers]
    entries = [trust.trust_publisher(replace(keys[0].public, name="bank", scopes=("bank*",)))]
    for old, new in pairwise(keys):
        entries.append(follow_rotation(written(folder / "next.json", rotation_statement(old=old, new=new))))
    return entries


@pytest.mark.parametrize("forgotten", [(), (0,), (1,), (0, 1)])
def test_a_revocation_names_all_that_rest_on_the_key(tmp_path, forgotten):
    """It once named only the first generation. Untrusting a key in between must not hide the later ones."""
    entries = followed_chain(tmp_path, 1, 2, 3, 4)
    for index in forgotten:
        trust.untrust_key(entries[index].fingerprint)
    path = written(tmp_path / "revocation.json", revocation_statement(key=building.key(1), reason="it was lost"))
    _, introduced = follow_revocation(path)
    assert set(introduced) == {entry for index, entry in enumerate(entries) if index and index not in forgotten}
    assert all(entry.status() == "trusted" for entry in introduced)
    _, introduced = follow_revocation(path, with_introduced=True)
    assert {entry.status() for entry in trust.load_trust()} == {"revoked"}
    assert all("introduced by the revoked key" in entry.revoked for entry in introduced)
    assert follow_revocation(path)[1] == ()


def test_a_revocation_in_the_middle_leaves_the_earlier_keys(tmp_path):
    entries = followed_chain(tmp_path, 1, 2, 3)
    path = written(tmp_path / "revocation.json", revocation_statement(key=building.key(2), reason="it was lost"))
    assert follow_revocation(path, with_introduced=True)[1][0].fingerprint == entries[2].fingerprint
    assert [entry.status() for entry in map(trust.load_trust().find, (each.fingerprint for each in entries))] == [
        *("trusted", "revoked", "revoked")
    ]


def test_a_revocation_that_shares_a_key_with_a_trusted_publisher_does_not_break_the_store(tmp_path):
    """Someone who broke only one algorithm could combine their own key with the publisher's other key."""
    trust.trust_publisher(replace(OLD.public, name="bank"))
    mixed = {"ed25519": MALLORY.private["ed25519"], "ml-dsa-65": OLD.private["ml-dsa-65"]}
    bent = revocation_statement(key=private_keys.PublisherKey.of(mixed, name="mixed"), reason="it was lost")
    with pytest.raises(UserError, match="have the same ml-dsa-65 key"):
        follow_revocation(written(tmp_path / "bent.json", bent))
    assert [entry.status() for entry in trust.load_trust()] == ["trusted"]


def test_following_onto_a_publisher_that_is_trusted_compares_all_of_its_keys(tmp_path, rotation):
    trust.trust_publisher(replace(OLD.public, name="bank", scopes=("bank*",)))
    trust.trust_publisher(replace(building.key(2).public, name="new", scopes=("loan*",)))
    entry = follow_rotation(rotation)
    assert (entry.name, entry.keys, entry.scopes, entry.ancestors) == ("new", NEW.public.keys, ("loan*",), ())
    mixed = {"ed25519": NEW.private["ed25519"], "ml-dsa-65": MALLORY.private["ml-dsa-65"]}
    other = private_keys.PublisherKey.of(mixed, name="mixed")
    bent = written(tmp_path / "bent.json", rotation_statement(old=OLD, new=other))
    with pytest.raises(UserError, match=r"new is trusted with the ml-dsa-65 key .*, which this file lacks"):
        follow_rotation(bent)
    with pytest.raises(UserError, match="already trusted as new"):
        follow_rotation(rotation, name="other")


def test_a_statement_of_the_other_kind_is_refused(rotation, revocation):
    trust.trust_publisher(OLD.public)
    with pytest.raises(UserError, match="keys revoke --statement"):
        follow_rotation(revocation)
    with pytest.raises(UserError, match="keys trust"):
        follow_revocation(rotation)


# The statements themselves


def test_a_statement_is_what_the_document_says(rotation):
    """Built by hand from docs/keys.md: format, line feed, canonical JSON of all but the signatures."""
    statement = json.loads(rotation.read_text())
    signatures = statement.pop("signatures")
    assert sorted(statement) == ["format", "new", "old"]
    message = b"sealed-experts/rotation/v1\n" + canonical_json(statement).encode()
    for role, signer in (("old", OLD), ("new", NEW)):
        assert statement[role] == {key.algorithm: key.raw.hex() for key in signer.public.keys}
        Ed25519PublicKey.from_public_bytes(signer.public.raw).verify(
            bytes.fromhex(signatures[role]["ed25519"]), message
        )
    assert read_statement(rotation) == Rotation(old=OLD.public.keys, new=NEW.public.keys)


def test_every_changed_character_of_a_statement_is_refused(tmp_path):
    whole = json.dumps(revocation_statement(key=building.key(1), reason="it was lost"))
    path = tmp_path / "changed.json"
    for position in range(len(whole)):
        letter = chr(ord(whole[position]) ^ 1)
        path.write_text(whole[:position] + letter + whole[position + 1 :])
        with pytest.raises(UserError):
            read_statement(path)


def test_a_statement_cut_at_any_length_is_refused(tmp_path):
    whole = json.dumps(revocation_statement(key=building.key(1), reason="it was lost"))
    path = tmp_path / "cut.json"
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(UserError):
            read_statement(path)


def sign_anew(statement: dict, signers: dict) -> dict:
    """Sign the present content of a statement again."""
    unsigned = {field: value for field, value in statement.items() if field != "signatures"}
    message = f"{unsigned['format']}\n{canonical_json(unsigned)}".encode()
    signatures = {
        role: {name: signer.sign(message, algorithm=name).hex() for name in signer.public.algorithms}
        for role, signer in signers.items()
    }
    return {**unsigned, "signatures": signatures}


def changed(statement: dict, path: str, value: object) -> dict:
    copy = json.loads(json.dumps(statement))
    place, *names = copy, *path.split(".")
    for name in names[:-1]:
        place = place[name]
    if value is None:
        del place[names[-1]]
    else:
        place[names[-1]] = value
    return copy


HONEST = rotation_statement(old=OLD, new=NEW)
BY_MALLORY = rotation_statement(old=MALLORY, new=NEW)
WEAK = "01" + "00" * 31  # one constant signs everything under it
BY_WEAK = {**HONEST, "new": {"ed25519": WEAK}}
ATTACKS = {
    "a new key under which anybody can sign": {
        **BY_WEAK,
        "signatures": {
            "old": sign_anew(BY_WEAK, {"old": OLD})["signatures"]["old"],
            "new": {"ed25519": WEAK + "00" * 32},
        },
    },
    "old signature by another": changed(HONEST, "signatures.old", BY_MALLORY["signatures"]["old"]),
    "new signature by another": changed(HONEST, "signatures.new", BY_MALLORY["signatures"]["old"]),
    "new key replaced": changed(HONEST, "new", BY_MALLORY["old"]),
    "old key replaced": changed(HONEST, "old", BY_MALLORY["old"]),
    "second signature of the old key stripped": changed(HONEST, "signatures.old.ml-dsa-65", None),
    "first signature of the old key stripped": changed(HONEST, "signatures.old.ed25519", None),
    "second signature and key of the old key stripped": changed(
        changed(HONEST, "signatures.old.ml-dsa-65", None), "old.ml-dsa-65", None
    ),
    "second key of the new key added unsigned": changed(
        rotation_statement(old=OLD, new=building.key(2)), "new.ml-dsa-65", NEW.public.keys[1].raw.hex()
    ),
    "new key did not sign": sign_anew(HONEST, {"old": OLD}),
    "old key did not sign": sign_anew(HONEST, {"new": NEW}),
    "new key is claimed, not held": sign_anew(HONEST, {"old": OLD, "new": MALLORY}),
    "a field more": sign_anew({**HONEST, "scopes": ["*"]}, {"old": OLD, "new": NEW}),
    "a field less": {name: value for name, value in HONEST.items() if name != "new"},
    "another format": sign_anew({**HONEST, "format": "sealed-experts/rotation/v2"}, {"old": OLD, "new": NEW}),
    "a revocation by its format": {**HONEST, "format": "sealed-experts/revocation/v1"},
    "a rotation into itself": sign_anew({**HONEST, "new": HONEST["old"]}, {"old": OLD, "new": OLD}),
    "an unknown algorithm": changed(HONEST, "old.rsa", "00"),
    "upper-case digits": changed(HONEST, "old.ed25519", HONEST["old"]["ed25519"].upper()),
    "a key as a number": changed(HONEST, "old.ed25519", 5),
    "keys as a list": changed(HONEST, "old", [1, 2]),
    "signatures as text": changed(HONEST, "signatures", "none"),
    "a signature as text of another length": changed(HONEST, "signatures.old.ed25519", "00"),
    "a list": [1, 2, 3],
    "a number": 5,
    "nothing": None,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_on_a_rotation_statement(attack, tmp_path):
    trust.trust_publisher(replace(OLD.public, name="bank"))
    with pytest.raises(UserError, match=r"bent\.json") as caught:
        follow_rotation(written(tmp_path / "bent.json", attack))
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in trust.load_trust()] == ["bank"]


def test_half_an_old_key_does_not_speak_for_both(tmp_path):
    """Someone who broke only Ed25519 can write a valid statement of an Ed25519-only publisher. It is not trusted."""
    trust.trust_publisher(replace(OLD.public, name="bank"))
    bent = written(tmp_path / "bent.json", rotation_statement(old=building.key(1), new=MALLORY))
    with pytest.raises(UserError, match="not signed with every key that bank is trusted with"):
        follow_rotation(bent)
    bent = written(tmp_path / "half.json", revocation_statement(key=building.key(1), reason="it was lost"))
    with pytest.raises(UserError, match="not signed with every key"):
        follow_revocation(bent)


def test_the_reason_of_a_revocation_cannot_steer_a_terminal(tmp_path):
    statement = revocation_statement(key=OLD, reason="it was lost")
    bent = sign_anew({**statement, "reason": "\x1b[2J"}, {"key": OLD})
    with pytest.raises(UserError, match="one line of visible text") as caught:
        read_statement(written(tmp_path / "bent.json", bent))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"\xff", b"{" * 100_000, b'{"format": 1, "format": 2}', b"[" * 60_000])
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "bent.json").write_bytes(content)
    with pytest.raises(UserError, match=r"bent\.json"):
        read_statement(tmp_path / "bent.json")


def test_a_fifo_is_no_statement_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_statement(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="cannot read the statement"):
        read_statement(tmp_path / "none.json")


def test_changes_wait_for_one_another(tmp_path, monkeypatch):
    """Two rotations at once would each keep the other's key as the old one."""
    from sealed_experts.files.locks import folder_lock

    private_keys.create_key()
    monkeypatch.setattr(key_changes, "folder_lock", lambda folder: folder_lock(folder, wait_seconds=0.1))
    with folder_lock(private_keys.keys_folder()), pytest.raises(UserError, match="in use by process"):
        rotate_key(output=tmp_path / "rotation.json")
