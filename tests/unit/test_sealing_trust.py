"""Who may be trusted: keys that stand for somebody, in files that nobody else can write."""

import json
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tests.attacks import building

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError
from sealed_experts.sealing import keys, trust
from sealed_experts.sealing.home import home_folder

# Removing trust


def test_untrust_removes_a_key_under_all_of_its_names():
    """It once said `no longer trusted` while the key still was, under a second name."""
    raw = building.key().public.raw
    for name in ("bank", "the-bank"):
        trust.trust_key(raw, name=name)
    trust.trust_key(b"\2" * 32, name="other")
    removed = trust.untrust_key("bank")
    assert [key.name for key in removed] == ["bank", "the-bank"]
    assert trust.load_trust().find(trust.fingerprint(raw)) is None
    assert [key.name for key in trust.load_trust()] == ["other"]


def test_untrust_by_fingerprint_removes_all_names_too():
    raw = building.key().public.raw
    for name in ("bank", "the-bank"):
        trust.trust_key(raw, name=name)
    assert len(trust.untrust_key(trust.fingerprint(raw))) == 2
    assert len(trust.load_trust()) == 0


def test_the_command_names_every_entry_that_it_removes(capsys, tmp_path):
    package = tmp_path / "tiny.tgsp"
    package.write_bytes(building.package())
    for name in ("bank", "the-bank"):
        trust.trust_key(building.key().public.raw, name=name)
    assert main(["verify", str(package)]) == 0
    capsys.readouterr()
    assert main(["keys", "untrust", "the-bank"]) == 0
    shown = capsys.readouterr().out
    assert "no longer trusted: bank, the-bank" in shown
    assert f"fingerprint {building.key().public.fingerprint}" in shown
    assert main(["verify", str(package)]) == 5


def test_a_name_cannot_be_taken_for_a_fingerprint():
    """`untrust` takes either: a name of this shape would remove another key than one means."""
    with pytest.raises(UserError, match="cannot name a key"):
        trust.trust_key(b"\1" * 32, name="0" * 64)


# Who can write the store


def give_away(path, monkeypatch):
    """Make `path` belong to another user than the one who reads it."""
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
    """An entry of mode 0666, or a home folder of mode 0777, was once read without a word."""
    trust.trust_key(b"\1" * 32, name="bank")
    place().chmod(wide if place().is_file() else wide | 0o700)
    with pytest.raises(UserError, match=r"other users can write to .*chmod go-w it"):
        trust.load_trust()


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_trust_that_belongs_to_another_user_is_refused(place, monkeypatch):
    """Whoever owns it can change it at any time, whatever its mode."""
    trust.trust_key(b"\1" * 32, name="bank")
    give_away(place(), monkeypatch)
    with pytest.raises(UserError, match=r"belongs to another user .*chown it"):
        trust.load_trust()


def test_trust_that_belongs_to_root_is_accepted(monkeypatch):
    trust.trust_key(b"\1" * 32, name="bank")
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to root")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert len(trust.load_trust()) == 1


def test_a_private_key_in_another_users_folder_is_refused(monkeypatch):
    keys.create_key()
    give_away(keys.keys_folder(), monkeypatch)
    with pytest.raises(UserError, match="belongs to another user"):
        keys.load_key()


def test_an_entry_that_is_no_file_is_refused_and_nothing_waits():
    trust.trust_key(b"\1" * 32, name="bank")
    os.mkfifo(trust.trust_folder() / "pipe.json", mode=0o600)
    with pytest.raises(UserError, match=r"cannot read .*pipe\.json.*not a regular file"):
        trust.load_trust()


# Keys under which anybody can sign

P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P


def point(encoded: bytes):
    """Decode as RFC 8032, section 5.1.3, but for its refusal of y >= p; None if there is no such point."""
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
    """Every encoding of a point whose order divides 8, found on the curve itself: eight points, y also as y + p."""
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
    assert {raw for raw in SMALL if trust.is_weak(raw)} == set(SMALL)
    for number in range(1, 30):
        raw = building.key(number).public.raw
        assert times_eight(point(raw)) != (0, 1)
        assert not trust.is_weak(raw)


@pytest.mark.parametrize("raw", SMALL, ids=lambda raw: raw.hex()[:6] + raw.hex()[-2:])
def test_a_key_under_which_anybody_can_sign_is_not_trusted(raw, tmp_path):
    """Under the neutral point, one constant is a signature of every message; it could be trusted once."""
    file = tmp_path / "weak.pub"
    file.write_text(trust.PublicKey(name="weak", raw=raw).pem)
    with pytest.raises(UserError, match=r"weak\.pub.*anybody can sign"):
        trust.read_public_key(file)
    with pytest.raises(UserError, match="anybody can sign"):
        trust.trust_key(raw, name="weak")
    assert main(["keys", "trust", str(file)]) == 1
    assert main(["verify", str(file), "--trust", str(file)]) == 1


def test_an_entry_of_a_weak_key_is_refused():
    raw = bytes([1]) + bytes(31)
    try:  # this library is one that accepts it
        Ed25519PublicKey.from_public_bytes(raw).verify(raw + bytes(32), b"any message")
    except InvalidSignature:
        pytest.skip("this version of the library refuses such keys by itself")
    trust.trust_key(b"\1" * 32, name="bank")
    path = trust.trust_folder() / "bank.json"
    entry = json.loads(path.read_text()) | {"public_key": raw.hex(), "fingerprint": trust.fingerprint(raw)}
    path.write_text(json.dumps(entry))
    with pytest.raises(UserError, match=r"bank\.json.*anybody can sign.*delete it"):
        trust.load_trust()
