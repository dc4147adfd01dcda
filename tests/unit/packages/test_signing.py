"""Signature algorithms against their standards, and against manipulated signatures."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys import signing
from sealed_experts.packages.keys.signing import ALGORITHMS, ED25519, ML_DSA_65, verify_signature

# RFC 8032, section 7.1, tests 1 to 3: private key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]
# One deterministic signature of Wycheproof's; a second implementation (dilithium-py) gives the same bytes.
WYCHEPROOF = json.loads((Path(__file__).parent / "vectors" / "ml_dsa_65.json").read_text())
# RFC 9881, appendix C.1: the beginning of the public key whose seed is 00 01 02 … 1f.
RFC_9881 = (
    "MIIHsjALBglghkgBZQMEAxIDggehAEhoPZGXjjHrPd24sEc0gtK4il9iWUn9j1il"
    "YeaWvUwn0Fs427Lt8B5mTv2Bvh6ok2iM5oqi1RxZWPi7xutOie5n0sAyCVTVchLK"
    "xyKf8dbq8DkovVFRH42I2EdzbH3icw1ZeOVBBxMWCXiGdxG/VTmgv8TDUMK+Vyuv"
)


def wycheproof(**changes: bytes | str) -> dict[str, bytes | str]:
    values = {
        "public_key": WYCHEPROOF["public_key"],
        "value": WYCHEPROOF["signature"],
        "message": WYCHEPROOF["message"],
    }
    return {"algorithm": ML_DSA_65, **{name: bytes.fromhex(text) for name, text in values.items()}, **changes}


def rfc_8032(number: int = 2, **changes: bytes | str) -> dict[str, bytes | str]:
    _, public_key, message, value = (bytes.fromhex(text) for text in RFC_8032[number])
    return {"algorithm": ED25519, "public_key": public_key, "value": value, "message": message, **changes}


VECTORS = {ED25519: rfc_8032, ML_DSA_65: wycheproof}


@pytest.mark.parametrize("number", range(3))
def test_ed25519_against_rfc_8032(number):
    private, public, message, value = (bytes.fromhex(text) for text in RFC_8032[number])
    key = Ed25519PrivateKey.from_private_bytes(private)
    assert key.public_key().public_bytes_raw() == public
    assert key.sign(message) == value
    verify_signature(**rfc_8032(number))


def test_ml_dsa_65_against_wycheproof():
    """Key generation, message encoding with an empty context, and verification follow the standard."""
    key = MLDSA65PrivateKey.from_seed_bytes(bytes.fromhex(WYCHEPROOF["seed"]))
    assert key.public_key().public_bytes_raw().hex() == WYCHEPROOF["public_key"]
    verify_signature(**wycheproof())


def test_the_public_files_encoding_against_rfc_9881():
    raw = MLDSA65PrivateKey.from_seed_bytes(bytes(range(32))).public_key().public_bytes_raw()
    pem = signing.encode_public(algorithm=ML_DSA_65, public_key=raw)
    assert "".join(pem.decode().split("\n")[1:-2]).startswith(RFC_9881)
    assert load_pem_public_key(pem).public_bytes_raw() == raw


def test_the_sizes_are_the_standards():
    """RFC 8032, section 5.1; FIPS 204, table 2."""
    sizes = {name: (known.public_key_size, known.signature_size) for name, known in ALGORITHMS.items()}
    assert sizes == {"ed25519": (32, 64), "ml-dsa-65": (1952, 3309)}


def test_randomised_says_whether_two_signatures_differ():
    for name, known in ALGORITHMS.items():
        key = signing.generate_key(name)
        assert (key.sign(b"message") != key.sign(b"message")) == known.randomised


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_changed_byte_of_a_signature_is_refused(algorithm):
    vector = VECTORS[algorithm]()
    for position in range(len(vector["value"])):
        value = bytearray(vector["value"])
        value[position] ^= 1
        with pytest.raises(SignatureError, match=f"the {algorithm} signature does not match"):
            verify_signature(**{**vector, "value": bytes(value)})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "change",
    [
        lambda vector: {"value": b""},
        lambda vector: {"value": vector["value"][:-1]},
        lambda vector: {"value": vector["value"] + b"\0"},
        lambda vector: {"value": bytes(len(vector["value"]))},
        lambda vector: {"message": vector["message"] + b"\0"},
        lambda vector: {"message": vector["message"][:-1]},
        lambda vector: {"public_key": b""},
        lambda vector: {"public_key": vector["public_key"][:-1]},
        lambda vector: {"public_key": vector["public_key"] + b"\0"},
        lambda vector: {"public_key": b"\xff" * len(vector["public_key"])},
    ],
)
def test_another_signature_message_or_key_is_refused(algorithm, change):
    vector = VECTORS[algorithm]()
    with pytest.raises(SignatureError) as caught:
        verify_signature(**{**vector, **change(vector)})
    assert caught.value.exit_code == 5


def test_the_second_form_of_an_ed25519_signature_is_refused():
    """S + L satisfies the same equation; accepting it would leave a byte of a package free (RFC 8032, section 8.4)."""
    order = 2**252 + 27742317777372353535851937790883648493
    value = rfc_8032()["value"]
    other = (int.from_bytes(value[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(SignatureError):
        verify_signature(**rfc_8032(value=value[:32] + other))


@pytest.mark.parametrize("algorithm", ["Ed25519", "ml-dsa-44", "rsa", "none", "", "\x1b[31m"])
def test_an_unknown_algorithm_is_refused(algorithm):
    with pytest.raises(SignatureError, match=r"is unknown; known are ed25519, ml-dsa-65") as caught:
        verify_signature(**rfc_8032(algorithm=algorithm))
    assert str(caught.value).isprintable()


def test_a_label_of_the_other_algorithm_is_refused():
    for vector, label in ((rfc_8032(), ML_DSA_65), (wycheproof(), ED25519)):
        with pytest.raises(SignatureError):
            verify_signature(**{**vector, "algorithm": label})


def test_a_signature_by_a_weak_key_is_refused_although_it_matches():
    """Under the neutral point, R = the same point and S = 0 sign every message."""
    raw = bytes([1]) + bytes(31)
    with pytest.raises(SignatureError, match="anyone can make signatures"):
        verify_signature(algorithm=ED25519, public_key=raw, value=raw + bytes(32), message=b"any message")


def test_a_signature_for_another_context_is_refused():
    key = MLDSA65PrivateKey.from_seed_bytes(bytes(32))
    vector = {"algorithm": ML_DSA_65, "public_key": key.public_key().public_bytes_raw(), "message": b"message"}
    verify_signature(**vector, value=key.sign(b"message"))
    with pytest.raises(SignatureError):
        verify_signature(**vector, value=key.sign(b"message", context=b"another protocol"))


@pytest.fixture
def _without_ml_dsa(monkeypatch):
    """Act as if OpenSSL were too old."""

    class Absent(MLDSA65PublicKey):
        @classmethod
        def from_public_bytes(cls, data):
            raise UnsupportedAlgorithm("ML-DSA-65 is not supported by this backend.")

    monkeypatch.setitem(signing.PUBLIC_KEYS, ML_DSA_65, Absent)
    signing.is_available.cache_clear()
    yield
    signing.is_available.cache_clear()


@pytest.mark.usefixtures("_without_ml_dsa")
def test_an_algorithm_that_the_library_lacks_is_said_to_be_missing_not_to_match():
    assert signing.available_algorithms() == (ED25519,)
    with pytest.raises(SignatureError, match=r"ml-dsa-65 cannot be checked here.*cryptography>="):
        verify_signature(**wycheproof())
    verify_signature(**rfc_8032())


def test_the_self_test_passes_here_and_notices_a_broken_library():
    for name in ALGORITHMS:
        signing.self_test(signing.generate_key(name))

    class Broken:
        """Signs a constant."""

        def __init__(self, key):
            self.key = key

        def public_key(self):
            return self.key.public_key()

        def sign(self, message):
            return self.key.sign(b"constant")

    broken = Broken(signing.generate_key(ED25519))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(signing.PRIVATE_KEYS, ED25519, Broken)
        with pytest.raises(SignatureError):
            signing.self_test(broken)


def test_the_self_test_notices_a_library_that_accepts_everything(monkeypatch):
    class Accepting:
        @staticmethod
        def from_public_bytes(raw):
            return Accepting()

        def verify(self, value, message):
            return None

    monkeypatch.setitem(signing.PUBLIC_KEYS, ED25519, Accepting)
    with pytest.raises(SignatureError, match="accepts a signature of another message"):
        signing.self_test(signing.generate_key(ED25519))


def test_other_keys_have_no_algorithm_here():
    assert signing.algorithm_of(generate_private_key(public_exponent=65537, key_size=2048)) is None
    for name in ALGORITHMS:
        key = signing.generate_key(name)
        assert signing.algorithm_of(key) == signing.algorithm_of(key.public_key()) == name


def test_a_seed_in_pkcs8_is_that_of_rfc_9881():
    """Appendix C.1.2.1: the form that holds the seed alone."""
    from sealed_experts.packages.keys.pem import private_pem

    stated = base64.b64decode("MDQCAQAwCwYJYIZIAWUDBAMSBCKAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f")
    written = private_pem([MLDSA65PrivateKey.from_seed_bytes(bytes(range(32)))], passphrase=None)
    assert base64.b64decode("".join(written.decode().split("\n")[1:-2])) == stated
