"""`sealed-experts verify`, `inspect` and `unpack` for both containers, with text and with JSON output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError, shown
from sealed_experts.packages.keys import private_keys
from sealed_experts.packages.keys.trust import load_trust, mark_revoked
from sealed_experts.packages.recipients.encryption import generate_identity
from sealed_experts.packages.recipients.recipient_files import save_identity
from tests.attacks import building, expert_building

ROOT = Path(__file__).resolve().parents[3]
CONTAINERS = ("tgsp", "expert")


def write(folder: Path, container: str, number: int = 1, **changes) -> Path:
    """Write a package that the key `number` signed."""
    path = folder / f"tiny.{container}"
    package = building.package(by=building.key(number), **changes)
    path.write_bytes(package if container == "tgsp" else expert_building.sealed(package, number=number))
    return path


@pytest.fixture(params=CONTAINERS)
def path(tmp_path, request) -> Path:
    """A package by key 1, which is not trusted."""
    return write(tmp_path, request.param)


@pytest.fixture
def _trusted():
    building.trust_key(building.key().public.raw, name="bank")


@pytest.mark.usefixtures("_trusted")
def test_verify_prints_one_json_object(path, capsys):
    assert main(["verify", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["trusted"]) == (True, True)
    assert (facts["name"], facts["publisher_name"]) == ("tiny_expert", "bank")
    assert facts["publisher"] == building.key().public.fingerprint
    assert facts["container"] == path.suffix[1:]
    assert facts["signatures"] == ["ed25519"]
    assert facts["privacy_recomputed"] is False
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert facts["digest"] == done.stdout.split()[0]


@pytest.mark.usefixtures("_trusted")
def test_the_container_is_told_by_the_first_bytes_not_by_the_name(path, tmp_path, capsys):
    other = tmp_path / "renamed.zip"
    other.write_bytes(path.read_bytes())
    assert main(["verify", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["container"] == path.suffix[1:]


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("options", [[], ["--json"], ["--allow-untrusted"], ["--recompute-privacy"]])
def test_verify_fails_with_one_line_and_a_code(path, capsys, options):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"An expert for tests.", b"An expert for bests."))
    assert main(["verify", str(path), *options]) == 5
    shown = capsys.readouterr()
    line = shown.err.splitlines()[-1]
    if "--json" in options:
        failure = json.loads(shown.out)
        assert (failure["ok"], failure["exit_code"], failure["error"]) == (False, 5, line.removeprefix("error: "))
    else:
        assert shown.out == ""
    assert line.startswith(f"error: {path}: the ed25519 signature does not match")
    assert len([each for each in shown.err.splitlines() if not each.startswith("WARNING")]) == 1


def test_verify_codes_for_what_else_is_wrong(path, tmp_path, capsys):
    assert main(["verify", str(path)]) == 5
    assert "not trusted" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none.tgsp")]) == 1
    for content in (b"", b"hello", b"\x1f", b"PK\x03\x04"):
        (tmp_path / "text").write_bytes(content)
        assert main(["verify", str(tmp_path / "text")]) == 11
        assert "this is not a package" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert main(["verify", str(tmp_path / "pipe")]) == 1
    assert main(["verify", str(path), "--trust", str(path)]) == 1
    assert main(["verify", str(path), "--policy", str(tmp_path / "none.yaml")]) == 1
    with pytest.raises(SystemExit) as usage:
        main(["verify"])
    assert usage.value.code == 2


@pytest.mark.usefixtures("_trusted")
def test_another_version_has_a_code_of_its_own(tmp_path, capsys):
    path = write(tmp_path, "tgsp")
    data = bytearray(path.read_bytes())
    data[9] = 7
    path.write_bytes(bytes(data))
    assert main(["verify", str(path)]) == 4
    assert "version 7" in capsys.readouterr().err


@pytest.mark.usefixtures("_trusted")
def test_a_key_given_by_file_is_the_only_one_trusted(path, tmp_path, capsys):
    own, other = tmp_path / "own.pub", tmp_path / "other.pub"
    own.write_text(building.key().public.pem)
    other.write_text(building.key(2).public.pem)
    assert main(["verify", str(path), "--trust", str(own)]) == 0
    assert "signed by bank" in capsys.readouterr().out
    assert main(["verify", str(path), "--trust", str(other)]) == 5


@pytest.mark.parametrize("command", ["verify", "inspect", "unpack", "install"])
def test_naming_a_file_does_not_take_a_revocation_back(command, path, tmp_path, capsys):
    """A file was once accepted with --trust although its key was revoked here. One revoked key is enough to refuse."""
    mark_revoked(building.key(second=True).public, reason="the laptop was stolen")
    own, mixed = tmp_path / "own.pub", tmp_path / "mixed.pub"
    own.write_text(building.key().public.pem)
    mixed.write_text(building.key(2).public.pem + building.key(second=True).public.keys[1].pem)
    for file in (own, mixed):
        folder = [str(tmp_path / "out")] if command == "unpack" else []
        assert main([command, str(path), *folder, "--trust", str(file)]) == 5
        shown = capsys.readouterr()
        assert (shown.out, "was revoked (the laptop was stolen)" in shown.err) == ("", True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize(
    ("policy", "code", "message"),
    [
        ("signatures: [ed25519, ml-dsa-65]", 5, "ml-dsa-65"),
        ("publishers: [somebody]", 5, "somebody"),
        ("experts: [legal_*]", 11, "legal_*"),
        ("max_epsilon: 0.5", 11, "up to 0.5"),
        ("signatures: [ed25519]\npublishers: [bank]\nmax_epsilon: 8", 0, ""),
    ],
)
def test_a_policy_holds_for_every_command(path, tmp_path, capsys, policy, code, message):
    file = tmp_path / "policy.yaml"
    file.write_text(policy)
    for command in (["verify"], ["inspect"], ["unpack"], ["install"]):
        arguments = [str(path), *([str(tmp_path / "out")] if command == ["unpack"] else [])]
        assert main([*command, *arguments, "--policy", str(file)]) == code, command
        shown = capsys.readouterr()
        assert message in shown.out + shown.err


# Without trust


def test_allow_untrusted_is_loud(path, capsys):
    assert main(["verify", str(path), "--allow-untrusted", "--json"]) == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert (facts["trusted"], facts["publisher_name"]) == (False, "nobody you trust")
    assert shown.err.count("WARNING: ") == 2
    assert "Do not load it" in shown.err
    assert main(["verify", str(path), "--allow-untrusted"]) == 0
    assert f"{path}: NOT verified: nobody you trust signed it" in capsys.readouterr().out


def test_the_help_of_verify_says_what_the_code_0_is_worth_for_a_stranger(capsys):
    """The help once said that 0 means that everything is verified, but --allow-untrusted also exits with 0."""
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert '--json then prints "ok": true and "trusted": false' in " ".join(capsys.readouterr().out.split())


def test_allow_untrusted_writes_to_a_new_folder_and_says_what_that_is_worth(path, tmp_path, capsys):
    assert main(["unpack", str(path), str(tmp_path / "out"), "--allow-untrusted"]) == 0
    shown = capsys.readouterr()
    assert "NOT verified" in shown.out
    assert "WARNING" in shown.err
    assert main(["verify", str(path)]) == 5, "nothing has become trusted"


def test_allow_untrusted_is_not_mixed_with_a_key_and_not_offered_to_install(path, tmp_path, capsys):
    assert main(["verify", str(path), "--allow-untrusted", "--trust", str(tmp_path / "x.pub")]) == 2
    assert "contradict" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["install", str(path), "--allow-untrusted"])


def test_allow_untrusted_still_refuses_what_no_package_may_hold(tmp_path, capsys):
    package = building.with_member("adapter_config.json", building.adapter_config(auto_mapping={}))
    for container, data in (("tgsp", package), ("expert", expert_building.converted(package))):
        path = tmp_path / f"bad.{container}"
        path.write_bytes(data)
        assert main(["verify", str(path), "--allow-untrusted"]) == 11
        assert "auto_mapping" in capsys.readouterr().err


# inspect and unpack


@pytest.mark.usefixtures("_trusted")
def test_inspect_of_a_verified_package(path, capsys):
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("VERIFIED: signed by bank")
    assert "name: tiny_expert" in lines
    assert any(line.startswith("privacy.epsilon: ") for line in lines)
    assert any(line.startswith("member: adapter_model.safetensors (") for line in lines)
    assert (path.suffix == ".expert") == any(line.startswith("integrity.pubkey: ed25519:") for line in lines)


def test_inspect_of_an_unknown_publisher_shows_the_manifest_and_says_that_nobody_vouches(path, capsys):
    assert main(["inspect", str(path)]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"NOT VERIFIED: {path}: the signature is by the key")
    assert "Anyone can make such a file" in lines[1]
    assert "name: tiny_expert" in lines


@pytest.mark.usefixtures("_trusted")
def test_inspect_shows_the_privacy_receipt(path, capsys):
    """It once showed only the manifest's few privacy fields, not the events or what ε protects."""
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    receipt = json.loads(building.parts()[1]["privacy_receipt.json"])
    for field in receipt:
        assert any(line.startswith(f"receipt.{field}") for line in lines) == (receipt[field] != {}), field
    assert any(line.startswith("receipt.events[0].noise_multiplier: ") for line in lines)
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verified"], shown["manifest_verified"], shown["refusal"]) == (True, True, None)
    assert (shown["receipt"], shown["manifest"]["name"]) == (receipt, "tiny_expert")


def test_inspect_says_for_programs_that_nobody_vouches(path, capsys):
    assert main(["inspect", str(path), "--json"]) == 5
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verified"], shown["manifest_verified"], shown["receipt"]) == (False, False, None)
    assert shown["manifest"]["name"] == "tiny_expert"
    assert "the signature is by the key" in shown["refusal"]
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["inspect", str(path), "--json"]) != 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verified"], shown["manifest"], shown["publisher"]) == (False, None, None)


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("position", [0, 1, 9, 40, 900, -1])
def test_inspect_of_an_altered_package_shows_nothing_of_it(path, capsys, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
    assert main(["inspect", str(path)]) != 0
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("NOT VERIFIED: ")


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("container", CONTAINERS)
def test_inspect_shows_what_nobody_sees(tmp_path, capsys, container):
    path = write(tmp_path, container, settings=building.run(description="safe\u200btxt"))
    assert main(["inspect", str(path)]) == 0
    assert "description: safe\\u200btxt" in capsys.readouterr().out


@pytest.mark.parametrize("container", CONTAINERS)
def test_inspect_of_a_strangers_package_reads_nothing_but_its_manifest(tmp_path, capsys, container, monkeypatch):
    """Decompressing and linting the payload of an unknown publisher once took seconds and hundreds of megabytes."""
    package = building.with_member("adapter_config.json", building.adapter_config(auto_mapping={}))
    path = tmp_path / f"p.{container}"
    path.write_bytes(package if container == "tgsp" else expert_building.converted(package))

    def reading(*_arguments, **_named):
        raise AssertionError("the content of a package was read that nobody trusts")

    monkeypatch.setattr("sealed_experts.packages.tgsp.examination.check_content", reading)
    monkeypatch.setattr("sealed_experts.packages.expert.container.check_content", reading)
    monkeypatch.setattr("sealed_experts.packages.tgsp.payload.decompress", reading)
    assert main(["inspect", str(path)]) == 5
    assert "name: tiny_expert" in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("_trusted")
def test_unpack(path, tmp_path):
    assert main(["unpack", str(path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == building.weights()
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*building.parts()[1], "manifest.json"])
    assert main(["unpack", str(path), str(tmp_path / "out")]) == 1
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["unpack", str(path), str(tmp_path / "new")]) == 11
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("_trusted")
def test_an_encrypted_package_needs_its_recipients_key(tmp_path, capsys):
    identity = generate_identity()
    save_identity(tmp_path / "mine.pem", identity)
    save_identity(tmp_path / "locked.pem", identity, passphrase=b"sesame")
    path = write(tmp_path, "tgsp", storage={"recipients": [identity.recipient]})
    assert main(["verify", str(path)]) == 1
    refusal = capsys.readouterr().err
    assert f"{path}: " in refusal
    assert "--identity KEY, or name its file in SEALED_EXPERTS_IDENTITY" in refusal, "it named neither"
    assert main(["inspect", str(path), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verified"], shown["manifest_verified"], shown["receipt"]) == (False, True, None)
    assert main(["inspect", str(path)]) == 1, "it is not verified completely"
    assert "VERIFIED IN ITS MANIFEST ONLY" in capsys.readouterr().out
    assert main(["verify", str(path), "--identity", str(tmp_path / "mine.pem"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipients"] == [identity.recipient.fingerprint]
    os.environ["SEALED_EXPERTS_PASSPHRASE"] = "sesame"
    try:
        assert main(["unpack", str(path), str(tmp_path / "out"), "--identity", str(tmp_path / "locked.pem")]) == 0
    finally:
        del os.environ["SEALED_EXPERTS_PASSPHRASE"]
    assert main(["verify", str(path), "--identity", str(tmp_path / "locked.pem")]) == 1


# The privacy receipt


@pytest.mark.usefixtures("_trusted")
def test_recompute_privacy_refuses_a_receipt_that_claims_less(tmp_path, capsys):
    """The claim of the tests' package is 4.2, far above what its events cost; 0.01 is far below."""
    for claim, code in ((4.2, 0), (0.01, 11)):
        privacy = building.privacy(epsilon=claim, stage_epsilon={"sft": claim})
        for container in CONTAINERS:
            path = write(tmp_path, container, privacy=privacy)
            assert main(["verify", str(path)]) == 0
            capsys.readouterr()
            assert main(["verify", str(path), "--recompute-privacy"]) == code
            shown = capsys.readouterr()
            if code:
                assert shown.err.startswith(f"error: {path}: privacy_receipt.json: ")
                assert shown.err.count("\n") == 1
            else:
                assert "the second accountant agrees" in shown.out
                assert main(["verify", str(path), "--recompute-privacy", "--json"]) == 0
                found = json.loads(capsys.readouterr().out)
                assert found["privacy_recomputed"] is True
                assert 0 < found["recomputed"]["lowest_epsilon"] <= found["recomputed"]["highest_epsilon"] < claim
                assert found["recomputed"]["delta"] == found["privacy"]["delta"]


# Files that are in the way, and impossible names


LONG = "/tmp/" + "x/" * 4000


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("place", ["x" * 300, LONG, "\x1b[31m/\n", "file/x", "locked/x"])
def test_a_place_that_cannot_be_is_one_line(path, tmp_path, capsys, monkeypatch, place):
    """A path that is too long, below a file, or in an unreadable folder once gave a traceback."""
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o000)
    target = str(tmp_path / place)
    for arguments in (
        ["verify", target],
        ["verify", str(path), "--base", target],
        ["inspect", target],
        *([["unpack", str(path), target]] if place[0] == "x" or place == LONG or place == "file/x" else []),
        ["unpack", target, str(tmp_path / "new")],
        ["install", target],
        ["install", str(path), "--base", target],
    ):
        code = main(arguments)
        shown = capsys.readouterr()
        assert code in (1, 11), arguments
        assert len((shown.out + shown.err).splitlines()) == 1, arguments
        assert (shown.out + shown.err).rstrip("\n").isprintable(), arguments


@pytest.mark.usefixtures("_trusted")
def test_what_is_printed_about_a_file_cannot_steer_the_terminal(path, tmp_path, capsys):
    odd = tmp_path / "a\x1b[31m\nverified: all is well\u202e.tgsp"
    odd.write_bytes(path.read_bytes())
    out = tmp_path / "o\x1b[2J\nut"
    for arguments in (
        ["verify", str(odd)],
        ["verify", str(odd), "--allow-untrusted"],
        ["unpack", str(odd), str(out)],
        ["install", str(odd), "--registry", str(tmp_path / "r\n\x1beg")],
        ["verify", str(odd) + "x"],
    ):
        main(arguments)
        shown = capsys.readouterr()
        lines = (shown.out + shown.err).splitlines()
        assert all(line.isprintable() for line in lines)
        assert len([line for line in lines if not line.startswith("WARNING")]) == 1


def test_a_message_of_several_lines_goes_on_indented():
    assert shown(UserError("two mistakes:\n  a: one\n  b: \x1btwo\nerror: forged")) == (
        "two mistakes:\n  a: one\n  b: \\u001btwo\\u000aerror: forged"
    )


@pytest.mark.parametrize(
    "options",
    [["--signature", "x"], ["--allow-untrusted", "--trust", "x"]],
)
def test_options_that_contradict_each_other_are_wrong_usage(path, capsys, options):
    assert main(["verify", str(path), *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


# From one machine to another


def test_from_creation_to_another_persons_trust(tmp_path, monkeypatch):
    assert main(["keys", "create"]) == 0
    fingerprint = building.own_fingerprint()
    public = tmp_path / "bank.pub"
    assert main(["keys", "export", "--output", str(public)]) == 0
    package = tmp_path / "p.tgsp"
    package.write_bytes(building.package(by=private_keys.load_key()))
    assert main(["publish", str(package), "--output", str(tmp_path)]) == 0
    packages = [package, tmp_path / "tiny_expert-tiny.v1.0.0.expert"]
    for each in packages:
        assert main(["verify", str(each)]) == 0

    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "somebody else"))
    for each in packages:
        assert main(["verify", str(each)]) == 5
    assert main(["keys", "trust", str(public)]) == 0
    assert [key.name for key in load_trust()] == ["bank"]
    for each in packages:
        assert main(["verify", str(each)]) == 0
    assert main(["keys", "untrust", fingerprint]) == 0
    for each in packages:
        assert main(["verify", str(each)]) == 5


def test_no_command_shows_the_private_half(path, capsys):
    main(["keys", "create"])
    for command in (["keys", "list"], ["keys", "list", "--json"], ["keys", "export"], ["verify", str(path)]):
        main(command)
    shown = capsys.readouterr()
    secret = private_keys.key_path().read_text().splitlines()[1]
    assert secret not in shown.out + shown.err


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("command", ["verify", "inspect", "install"])
def test_no_command_needs_a_heavy_library(path, command):
    code = (
        "import sys; from sealed_experts.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'peft', 'dp_accounting', 'scipy'} & set(sys.modules); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    subprocess.run([sys.executable, "-c", code, command, str(path)], env=environment, check=True, timeout=60)
