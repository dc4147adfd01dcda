"""Who may be trusted: strong keys, in files that nobody else can write."""

import datetime
import json
import os
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError
from sealed_experts.files.home import home_folder
from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys import private_keys, trust, trust_entry
from sealed_experts.packages.keys.pem import read_public_keys
from sealed_experts.packages.keys.publisher import PublicKey, check_scope, today
from sealed_experts.packages.keys.signing import fingerprint, is_weak
from sealed_experts.packages.opening import trust_in_file
from tests.attacks import building

# Removing trust


@pytest.mark.parametrize("meant", ["bank", "the-bank", fingerprint(b"\1" * 32)])
def test_untrust_removes_a_key_under_all_of_its_names(meant):
    """It once said `no longer trusted`, but the key was still trusted under a second name."""
    entry = trust_entry.entry_of(building.trust_key(b"\1" * 32, name="bank"))
    (trust.trust_folder() / "the-bank.json").write_text(json.dumps({**entry, "name": "the-bank"}))
    with pytest.raises(UserError, match="same ed25519 key"):
        building.trust_key(b"\2" * 32, name="other")
    removed = trust.untrust_key(meant)
    assert [key.name for key in removed] == ["bank", "the-bank"]
    building.trust_key(b"\2" * 32, name="other")
    assert trust.load_trust().find(fingerprint(b"\1" * 32)) is None
    assert [key.name for key in trust.load_trust()] == ["other"]


def test_the_command_says_what_it_removes(capsys, tmp_path):
    package = tmp_path / "tiny.tgsp"
    package.write_bytes(building.package())
    building.trust_key(building.key().public.raw, name="bank")
    assert main(["verify", str(package)]) == 0
    capsys.readouterr()
    assert main(["keys", "untrust", "bank"]) == 0
    shown = capsys.readouterr().out
    assert "no longer trusted: bank" in shown
    assert f"fingerprint {building.key().public.fingerprint}" in shown
    assert main(["verify", str(package)]) == 5


def test_an_algorithm_has_its_own_fingerprint_to_untrust_by():
    both = building.key(second=True).public
    trust.trust_publisher(both)
    assert trust.untrust_key(both.keys[1].fingerprint) == (both,)


def test_a_name_cannot_be_taken_for_a_fingerprint():
    """`untrust` accepts both: a name like a fingerprint could remove the wrong key."""
    with pytest.raises(UserError, match="cannot name a key"):
        building.trust_key(b"\1" * 32, name="0" * 64)


# Who can write the store


def give_away(path, monkeypatch):
    """Make `path` belong to another user."""
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


PLACES = {
    "home": lambda: home_folder(),
    "store": trust.trust_folder,
    "entry": lambda: trust.trust_folder() / "bank.json",
}


@pytest.mark.parametrize("wide", [0o666, 0o664, 0o646, 0o777])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_trust_that_others_can_write_is_refused(place, wide):
    """An entry of mode 0666, or a home folder of mode 0777, was once read without an error."""
    building.trust_key(b"\1" * 32, name="bank")
    place().chmod(wide if place().is_file() else wide | 0o700)
    with pytest.raises(UserError, match=r"other users can write to .*chmod go-w it"):
        trust.load_trust()


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_trust_that_belongs_to_another_user_is_refused(place, monkeypatch):
    """Its owner can change it at any time, with any mode."""
    building.trust_key(b"\1" * 32, name="bank")
    give_away(place(), monkeypatch)
    with pytest.raises(UserError, match=r"belongs to another user .*chown it"):
        trust.load_trust()


def test_trust_that_belongs_to_root_is_accepted(monkeypatch):
    building.trust_key(b"\1" * 32, name="bank")
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to root")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert len(trust.load_trust()) == 1


def test_a_private_key_in_another_users_folder_is_refused(monkeypatch):
    private_keys.create_key()
    give_away(private_keys.keys_folder(), monkeypatch)
    with pytest.raises(UserError, match="belongs to another user"):
        private_keys.load_key()


def test_an_entry_that_is_no_file_is_refused_and_nothing_waits():
    building.trust_key(b"\1" * 32, name="bank")
    os.mkfifo(trust.trust_folder() / "pipe.json", mode=0o600)
    with pytest.raises(UserError, match=r"cannot read .*pipe\.json.*not a regular file"):
        trust.load_trust()


# Keys under which anyone can make signatures

P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P


def point(encoded: bytes):
    """Decode as in RFC 8032, section 5.1.3, but accept y >= p; None if there is no such point."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, (number & (2**255 - 1)) % P
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return (x if x & 1 == sign else -x % P), y


def add(first, second):
    """Add two points of -x² + y² = 1 + d·x²·y²."""
    (x1, y1), (x2, y2) = first, second
    product = D * x1 * x2 * y1 * y2 % P
    x3 = (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P) % P
    return x3, (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P) % P


def times_eight(start):
    for _ in range(3):
        start = add(start, start)
    return start


def small_order() -> list[bytes]:
    """Return every encoding of a point whose order divides 8, found by computation: eight points, y also as y + p."""
    order = 2**252 + 27742317777372353535851937790883648493
    found = set()
    for seed in range(2, 40):  # multiplied by the large prime order, any point falls into the group of eight
        start = point(seed.to_bytes(32, "little"))
        if start is None:
            continue
        total, power, rest = (0, 1), start, order
        while rest:
            if rest & 1:
                total = add(total, power)
            power, rest = add(power, power), rest >> 1
        found.add(total[1])
    found |= {P - y for y in found} | {0, 1, P - 1}
    values = found | {y + P for y in found if y + P < 2**255}
    return sorted((y | sign << 255).to_bytes(32, "little") for y in values for sign in (0, 1))


SMALL = small_order()


def test_the_list_of_weak_points_is_the_curves_own():
    assert len(SMALL) == 14
    assert all(times_eight(point(raw)) == (0, 1) for raw in SMALL)
    assert {raw for raw in SMALL if is_weak(raw)} == set(SMALL)
    for number in range(1, 30):
        raw = building.key(number).public.raw
        assert times_eight(point(raw)) != (0, 1)
        assert not is_weak(raw)


@pytest.mark.parametrize("raw", SMALL, ids=lambda raw: raw.hex()[:6] + raw.hex()[-2:])
def test_a_key_under_which_anybody_can_sign_is_not_trusted(raw, tmp_path):
    """For the neutral point, one constant is a signature of every message. Such a key could once be trusted."""
    file = tmp_path / "weak.pub"
    file.write_text(PublicKey(raw=raw).pem)
    with pytest.raises(UserError, match=r"weak\.pub.*anyone can make signatures"):
        read_public_keys(file)
    with pytest.raises(UserError, match="anyone can make signatures"):
        building.trust_key(raw, name="weak")
    assert main(["keys", "trust", str(file)]) == 1
    assert main(["verify", str(file), "--trust", str(file)]) == 1


def test_an_entry_of_a_weak_key_is_refused():
    raw = bytes([1]) + bytes(31)
    try:  # this library is one that accepts it
        Ed25519PublicKey.from_public_bytes(raw).verify(raw + bytes(32), b"any message")
    except InvalidSignature:
        pytest.skip("this version of the library refuses such keys by itself")
    building.trust_key(b"\1" * 32, name="bank")
    path = trust.trust_folder() / "bank.json"
    entry = json.loads(path.read_text()) | {"keys": {"ed25519": raw.hex()}, "fingerprint": fingerprint(raw)}
    path.write_text(json.dumps(entry))
    with pytest.raises(UserError, match=r"bank\.json.*anyone can make signatures.*delete it"):
        trust.load_trust()


# Whose signatures these are


def publisher(number: int = 1, **changes):
    """A publisher of both algorithms."""
    return replace(building.key(number, second=True).public, **changes)


def signers(*publishers, algorithms=("ed25519", "ml-dsa-65")):
    return [(key.algorithm, key.raw) for each in publishers for key in each.keys if key.algorithm in algorithms]


def refused(store, presented, match, **options):
    with pytest.raises(SignatureError, match=match) as caught:
        store.publisher_of(presented, **options)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_the_publisher_of_both_signatures():
    store = trust.TrustStore([publisher(1), publisher(2)])
    assert store.publisher_of(signers(publisher(2))) == publisher(2)
    assert store.publisher_of(list(reversed(signers(publisher(2))))) == publisher(2)


def test_an_unknown_key_is_refused():
    store = trust.TrustStore([publisher(1)])
    refused(store, signers(publisher(2)), "which is not trusted here")
    refused(trust.TrustStore([]), signers(publisher(1)), "which is not trusted here")
    refused(store, [], "by nobody")


@pytest.mark.parametrize("stripped", ["ed25519", "ml-dsa-65"])
def test_a_stripped_signature_is_refused_whichever_it_is(stripped):
    """The attack: remove one signature, so that breaking the other algorithm is enough to forge."""
    kept = [name for name in ("ed25519", "ml-dsa-65") if name != stripped]
    store = trust.TrustStore([publisher()])
    refused(store, signers(publisher(), algorithms=kept), f"the {stripped} signature of key1 is missing")


def test_a_policy_can_require_fewer_signatures_or_more():
    store, ed25519 = trust.TrustStore([publisher()]), ("ed25519",)
    assert store.publisher_of(signers(publisher(), algorithms=ed25519), required=ed25519) == publisher()
    refused(store, signers(publisher(), algorithms=ed25519), "is missing", required=("ed25519", "ml-dsa-65"))
    old = building.key().public
    refused(
        trust.TrustStore([old]),
        signers(old),
        "an ml-dsa-65 signature is required, but no ml-dsa-65 key of key1 is known here",
        required=("ml-dsa-65",),
    )


def test_signatures_of_two_publishers_are_refused():
    store = trust.TrustStore([publisher(1), publisher(2)])
    mixed = signers(publisher(1), algorithms=("ed25519",)) + signers(publisher(2), algorithms=("ml-dsa-65",))
    refused(store, mixed, "by key1 and key2")


def test_a_second_signature_by_an_unknown_key_is_refused():
    """The trust store has an older public file, or somebody added their own key to the publisher's."""
    refused(trust.TrustStore([building.key().public]), signers(publisher()), "which is not trusted here")


def test_an_algorithm_named_twice_is_refused():
    refused(trust.TrustStore([publisher()]), signers(publisher(), publisher()), "an algorithm twice")


def test_a_key_under_the_other_algorithms_label_is_unknown():
    refused(trust.TrustStore([publisher()]), [("ml-dsa-65", publisher().raw)], "not trusted here")


def test_a_revoked_key_is_refused_by_its_reason():
    store = trust.TrustStore([publisher(revoked="the laptop was stolen")])
    refused(store, signers(publisher()), r"key1 \([0-9a-f]{64}\) was revoked \(the laptop was stolen\)")
    refused(store, signers(publisher(), algorithms=("ed25519",)), "was revoked", required=("ed25519",))


def test_a_key_expires_after_its_last_day():
    day = datetime.timedelta(days=1)
    assert trust.TrustStore([publisher(expires=today())]).publisher_of(signers(publisher()))
    assert publisher(expires=today() + day).status() == publisher(expires=today()).status() == "trusted"
    assert publisher(expires=today() - day).status() == "expired"
    refused(trust.TrustStore([publisher(expires=today() - day)]), signers(publisher()), "expired here on 2")


def test_a_store_refuses_two_publishers_with_one_key():
    """A signature could not distinguish them: one publisher could evade the limits of the other."""
    half = replace(publisher(2), keys=(publisher(2).keys[0], publisher(1).keys[1]))
    for other in (replace(publisher(1), name="other"), publisher(1, revoked="lost"), half):
        with pytest.raises(UserError, match=r"have the same .* key"):
            trust.TrustStore([publisher(1), other])
    assert len(trust.TrustStore([publisher(1), publisher(1)])) == 1


@pytest.mark.parametrize(
    ("scopes", "name", "allowed"),
    [
        (("*",), "anything", True),
        (("bank*",), "banking_expert", True),
        (("bank*",), "my_banking_expert", False),
        (("bank*", "insurance_?"), "insurance_2", True),
        (("insurance_?",), "insurance_10", False),
        (("bank",), "banking", False),
        (("bank",), "BANK", False),
        (("b.nk",), "bank", False),
    ],
)
def test_scopes(scopes, name, allowed):
    if allowed:
        check_scope(publisher(scopes=scopes), name)
        return
    with pytest.raises(SignatureError, match="key1 may not sign an expert called"):
        check_scope(publisher(scopes=scopes), name)


# Changing an entry


def test_an_entry_holds_everything():
    entry = publisher(
        name="bank", scopes=("bank*", "loan_?"), expires=datetime.date(2031, 12, 31), ancestors=("a" * 64, "b" * 64)
    )
    assert trust.trust_publisher(entry) == entry
    assert trust.load_trust().find(entry.fingerprint) == entry
    trust.mark_revoked(entry, reason="it was lost")
    assert trust.load_trust().find(entry.fingerprint) == replace(entry, revoked="it was lost")


def test_nobody_is_told_to_delete_a_damaged_revocation():
    """After deleting it, an old file could make the user trust the revoked key again."""
    path = trust.trust_folder() / "bank.json"
    trust.trust_publisher(publisher(name="bank"))
    path.write_text(path.read_text().replace("bank", "tank"))
    with pytest.raises(UserError, match="delete it, and trust its publisher again"):
        trust.load_trust()
    path.write_text(path.read_text().replace("tank", "bank"))
    trust.mark_revoked(publisher(), reason="it was lost")
    whole = path.read_text()
    for damaged in (whole.replace("bank", "tank"), whole[:-20], whole[:100], "", "[1]"):
        path.write_text(damaged)
        with pytest.raises(UserError, match="restore it from a copy") as caught:
            trust.load_trust()
        assert "delete" not in str(caught.value)


def test_a_key_to_be_revoked_takes_nobodys_name():
    """An attacker can make a key with the same eight digits: another publisher's entry would be lost."""
    other = publisher(1)
    taken = f"revoked-{other.fingerprint[:8]}"
    victims = [
        building.trust_key(bytes([number]) * 32, name=name) for number, name in enumerate((taken, f"{taken}x"), 7)
    ]
    building.trust_key(b"\5" * 32, name=f"{taken}-{other.fingerprint[:8]}")
    entry = trust.mark_revoked(replace(other, name=taken), reason="it was lost")
    assert entry.name == f"{taken}-{other.fingerprint[:16]}"
    assert all(trust.load_trust().find(victim.fingerprint) == victim for victim in victims)
    assert len(trust.load_trust()) == 4


def test_a_second_algorithm_can_be_added_but_none_taken_away():
    """Otherwise a file with only the first key would allow to remove the second signature."""
    trust.trust_publisher(building.key().public)
    trust.trust_publisher(publisher())
    with pytest.raises(UserError, match=r"is trusted with the ml-dsa-65 key .*, which this file lacks"):
        trust.trust_publisher(building.key().public)
    other = replace(publisher(), keys=(publisher().keys[0], publisher(2).keys[1]))
    with pytest.raises(UserError, match="which this file lacks"):
        trust.trust_publisher(other)
    assert trust.load_trust().find(publisher().fingerprint) == publisher()


def test_a_key_has_one_name():
    trust.trust_publisher(publisher(name="bank"))
    with pytest.raises(UserError, match="already trusted as bank"):
        trust.trust_publisher(publisher(name="the-bank"))


def test_a_revoked_key_can_neither_be_trusted_again_nor_forgotten():
    trust.trust_publisher(publisher(name="bank"))
    trust.mark_revoked(publisher(), reason="it was lost")
    for name in ("bank", "other"):
        with pytest.raises(UserError, match=r"was revoked here \(it was lost\)"):
            trust.trust_publisher(publisher(name=name))
    with pytest.raises(UserError, match=r"revoked, so it is refused already.*bank\.json"):
        trust.untrust_key("bank")
    assert trust.load_trust().find(publisher().fingerprint).status() == "revoked"
    half = replace(publisher(2), name="second", keys=(publisher(2).keys[0], publisher(1).keys[1]))
    with pytest.raises(UserError, match="have the same ml-dsa-65 key"):
        trust.trust_publisher(half)


def test_a_key_that_nobody_trusts_can_be_kept_as_revoked():
    trust.trust_publisher(publisher(2, name="bank"))
    trust.mark_revoked(publisher(1, name="bank"), reason="it was lost")
    assert {entry.name: entry.status() for entry in trust.load_trust()} == {
        "bank": "trusted",
        f"bank-{publisher(1).fingerprint[:8]}": "revoked",
    }


@pytest.mark.parametrize("scopes", [(), ("",), ("A*",), ("[ab]",), ("a b",), ("../x",), ("x" * 65,)])
def test_a_scope_that_is_no_pattern_is_refused(scopes):
    with pytest.raises(UserError, match="is not a pattern of names"):
        trust.trust_publisher(publisher(scopes=scopes))


def test_nothing_half_written_is_ever_read(monkeypatch):
    """A crash in the middle of a change leaves the old entry."""
    trust.trust_publisher(publisher(name="bank"))

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        trust.mark_revoked(publisher(), reason="it was lost")
    assert trust.load_trust().find(publisher().fingerprint) == publisher(name="bank")
    assert [path.name for path in trust.trust_folder().iterdir() if path.suffix == ".tmp"] == []


# A key that a file or a package names itself


def test_naming_a_file_takes_back_neither_scope_nor_expiry_nor_a_second_key(tmp_path):
    """`--trust` once ignored the limits that the store has for the same key."""
    file, day = tmp_path / "bank.pub", datetime.timedelta(days=1)
    file.write_text(building.key().public.pem)
    (unknown,) = trust_in_file(file)
    assert (unknown.name, unknown.keys, unknown.scopes) == ("bank", building.key().public.keys, ("*",))
    entry = trust.trust_publisher(publisher(name="known", scopes=("bank*",), expires=today() + day))
    (named,) = trust_in_file(file)
    assert named == entry
    refused(
        trust_in_file(file), signers(publisher(), algorithms=("ed25519",)), "ml-dsa-65 signature of known is missing"
    )
    file.write_text(replace(publisher(), keys=(publisher().keys[0], publisher(2).keys[1])).pem)
    with pytest.raises(UserError, match=r"holds keys of known, whose ml-dsa-65 key is another one here"):
        trust_in_file(file)
    file.write_text(publisher().pem)
    trust.trust_publisher(replace(entry, expires=today() - day))
    with pytest.raises(SignatureError, match="expired here on"):
        trust_in_file(file)


def test_what_a_revoked_key_signed_is_refused_even_where_nobody_is_trusted(tmp_path, capsys):
    """`--allow-untrusted` accepts any publisher, except those that the user has revoked."""
    package = tmp_path / "tiny.tgsp"
    package.write_bytes(building.package())
    assert main(["verify", str(package), "--allow-untrusted"]) == 0
    trust.mark_revoked(building.key().public, reason="it was lost")
    capsys.readouterr()
    for command in (["verify", str(package)], ["unpack", str(package), str(tmp_path / "new")]):
        assert main([*command, "--allow-untrusted"]) == 5
        assert "was revoked (it was lost)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
