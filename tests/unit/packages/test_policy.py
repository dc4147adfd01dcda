"""Policies: what a file may say, and what is refused by it."""

from dataclasses import replace

import pytest

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.keys.policy import Policy
from tests.attacks import building

BANK = replace(building.key(second=True).public, name="bank", scopes=("bank*",))
MANIFEST = {"name": "banking_expert", "privacy": {"epsilon": 4.2, "delta": 1e-5}}


def signers(*algorithms):
    return [(key.algorithm, key.raw) for key in BANK.keys if key.algorithm in (algorithms or BANK.algorithms)]


def check(policy, *algorithms, publisher=BANK, **manifest):
    policy.check(publisher, signers(*algorithms), {**MANIFEST, **manifest})


@pytest.fixture
def read(tmp_path):
    def read(text: str) -> Policy:
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return Policy.read(path)

    return read


def test_a_file_says_everything(read):
    policy = read(
        "# ours\nsignatures: [ed25519, ml-dsa-65]\npublishers:\n  - bank\n"
        f"  - {BANK.fingerprint}\nexperts: [bank*]\nmax_epsilon: 8\n"
    )
    assert policy == Policy(
        signatures=("ed25519", "ml-dsa-65"),
        publishers=("bank", BANK.fingerprint),
        experts=("bank*",),
        max_epsilon=8.0,
    )
    check(policy)


def test_an_empty_file_is_the_default(read):
    assert read("") == read("# nothing\n") == Policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("signature: [ed25519]", "`signature` is not part of a policy: it can hold signatures, publishers"),
        ("signatures: ed25519", "signatures: must be a list of ed25519 and ml-dsa-65"),
        ("signatures: []", "signatures: must be a list .* with at least one; leave it out"),
        ("signatures:", "signatures: must be a list"),
        ("signatures: [ed25519, rsa]", r"signatures\[1\]: 'rsa' is none of ed25519 and ml-dsa-65"),
        ("signatures: [ed25519, ed25519]", r"signatures\[1\]: ed25519 is listed twice"),
        ("signatures: [1]", r"signatures\[0\]: '1' is none of"),
        ("publishers: [Bank A]", r"publishers\[0\]: 'Bank A' is none of names, fingerprints"),
        ("publishers: {bank: yes}", "publishers: must be a list"),
        ("experts: ['[a-z]']", r"experts\[0\]: '\[a-z\]' is none of patterns of names"),
        ("max_epsilon: 0", "max_epsilon: '0' must be a number above 0"),
        ("max_epsilon: -1", "max_epsilon: '-1' must be a number above 0"),
        ("max_epsilon: .inf", "max_epsilon"),
        ("max_epsilon: .nan", "max_epsilon"),
        ("max_epsilon: true", "max_epsilon: 'True' must be a number above 0"),
        ("max_epsilon: '8'", "max_epsilon: '8' must be a number above 0"),
        ("max_epsilon:", "max_epsilon: 'None' must be a number above 0"),
        ("max_epsilon: 1\nmax_epsilon: 2", "max_epsilon"),
        ("- ed25519", "mapping"),
        ("signatures: [ed25519", "line"),
        ("!!python/object/apply:os.system ['true']", "policy.yaml"),
    ],
)
def test_mistakes_in_a_file_name_their_place(read, text, message):
    with pytest.raises(UserError, match=rf"policy\.yaml.*{message}|{message}") as caught:
        read(text)
    assert "policy.yaml" in str(caught.value)
    assert not isinstance(caught.value, PackageError)


def test_a_missing_file_is_refused(tmp_path):
    """Without the error, the policy would silently accept what it was written to refuse."""
    with pytest.raises(UserError, match=r"none\.yaml"):
        Policy.read(tmp_path / "none.yaml")


def refused(error, match, policy, *algorithms, **options):
    with pytest.raises(error, match=match) as caught:
        check(policy, *algorithms, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_by_default_every_signature_of_the_publisher_must_be_there():
    check(Policy())
    refused(SignatureError, "ml-dsa-65 signature of bank is missing", Policy(), "ed25519")
    refused(SignatureError, "ed25519 signature of bank is missing", Policy(), "ml-dsa-65")


def test_the_signatures_named_must_be_there():
    check(Policy(signatures=("ed25519",)), "ed25519")
    refused(SignatureError, "ed25519 signature", Policy(signatures=("ed25519",)), "ml-dsa-65")
    old = replace(BANK, keys=BANK.keys[:1])
    refused(SignatureError, "no ml-dsa-65 key of bank", Policy(signatures=("ml-dsa-65",)), "ed25519", publisher=old)


def test_only_the_publishers_named_are_accepted():
    for named in ("bank", BANK.fingerprint, BANK.keys[1].fingerprint):
        check(Policy(publishers=("other", named)))
    refused(SignatureError, "accepts packages of other only; this one is by bank", Policy(publishers=("other",)))


def test_the_publishers_scope_holds_under_any_policy():
    for policy in (Policy(), Policy(experts=("*",))):
        refused(SignatureError, "bank may not sign an expert called 'insurance'", policy, name="insurance")


def test_only_the_experts_named_are_accepted():
    refused(PackageError, "accepts experts called loan_.*; this is 'banking_expert'", Policy(experts=("loan_*",)))
    check(Policy(experts=("loan_*", "banking_?xpert")))


@pytest.mark.parametrize(
    ("epsilon", "most", "fits"), [(4.2, 8, True), (8.0, 8, True), (8.01, 8, False), (0.0, 1, True)]
)
def test_epsilon(epsilon, most, fits):
    policy = Policy(max_epsilon=float(most))
    if fits:
        check(policy, privacy={"epsilon": epsilon, "delta": 1e-5})
    else:
        refused(PackageError, "up to 8; this package's is 8.01", policy, privacy={"epsilon": epsilon, "delta": 1e-5})


@pytest.mark.parametrize("delta", [1.1e-3, 0.9999, None])
def test_a_bound_on_epsilon_is_one_on_delta_too(delta):
    """For δ = 0.9999 any ε can be stated, and this was once accepted."""
    stated = {"epsilon": 0.0001, "delta": delta}
    refused(PackageError, "δ up to 0.001; this package states its ε for", Policy(max_epsilon=8.0), privacy=stated)
    refused(PackageError, "δ up to 1e-06", Policy(max_epsilon=8.0, max_delta=1e-6), privacy={**stated, "delta": 1e-5})
    check(Policy(max_epsilon=8.0), privacy={**stated, "delta": 1e-3})
    check(Policy(), privacy=stated)


def test_a_bound_on_delta_alone_says_nothing(tmp_path):
    (tmp_path / "policy.yaml").write_text("max_delta: 1.0e-6\n")
    with pytest.raises(UserError, match=r"max_delta: it has no meaning without max_epsilon"):
        Policy.read(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_text("max_delta: 1.0e-6\nmax_epsilon: 8\n")
    assert Policy.read(tmp_path / "policy.yaml") == Policy(max_epsilon=8.0, max_delta=1e-6)


@pytest.mark.parametrize("epsilon", [None, float("nan")])
def test_a_package_without_privacy_does_not_fit_a_bound(epsilon):
    refused(PackageError, "accepts ε up to 8", Policy(max_epsilon=8.0), privacy={"epsilon": epsilon})
    check(Policy(), privacy={"epsilon": None})
