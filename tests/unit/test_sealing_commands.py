"""`sealed-experts keys`, `verify`, `inspect` and `unpack`, as a person and as a program use them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.attacks import building

from sealed_experts.cli.main import main
from sealed_experts.sealing import container, keys
from sealed_experts.sealing.trust import load_trust, trust_key

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path) -> Path:
    """A package by key 1, which is not trusted."""
    file = tmp_path / "tiny.tgsp"
    file.write_bytes(building.package())
    return file


@pytest.fixture
def _trusted():
    trust_key(building.key().public.raw, name="bank")


@pytest.mark.usefixtures("_trusted")
def test_verify_prints_one_json_object(path, capsys):
    assert main(["verify", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is True
    assert (facts["name"], facts["publisher_name"]) == ("tiny_expert", "bank")
    assert facts["publisher"] == building.key().public.fingerprint


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_verify_fails_with_one_line_and_a_code(path, capsys, options):
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(bytes(data))
    assert main(["verify", str(path), *options]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {path}: the signature does not match")
    assert shown.err.count("\n") == 1


def test_verify_codes_for_what_else_is_wrong(path, tmp_path, capsys):
    assert main(["verify", str(path)]) == 5
    assert "not trusted" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none.tgsp")]) == 1
    (tmp_path / "text").write_text("hello")
    assert main(["verify", str(tmp_path / "text")]) == 11
    with pytest.raises(SystemExit) as usage:
        main(["verify"])
    assert usage.value.code == 2


@pytest.mark.usefixtures("_trusted")
def test_a_key_given_by_file_is_the_only_one_trusted(path, tmp_path, capsys):
    own, other = tmp_path / "own.pub", tmp_path / "other.pub"
    own.write_text(building.key().public.pem)
    other.write_text(building.key(2).public.pem)
    assert main(["verify", str(path), "--trust", str(own)]) == 0
    assert "signed by own" in capsys.readouterr().out
    assert main(["verify", str(path), "--trust", str(other)]) == 5


@pytest.mark.usefixtures("_trusted")
def test_inspect_of_a_verified_package(path, capsys):
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("VERIFIED: signed by bank")
    assert "name: tiny_expert" in lines
    assert "privacy.epsilon: 4.2" in lines
    assert any(line.startswith("member: adapter_model.safetensors (") for line in lines)


def test_inspect_of_an_unknown_publisher_shows_the_manifest_and_says_that_nobody_vouches(path, capsys):
    assert main(["inspect", str(path)]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NOT VERIFIED: the signature is by the key")
    assert "Anyone can make such a file" in lines[1]
    assert "name: tiny_expert" in lines


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("position", [0, 9, 40, -1])
def test_inspect_of_an_altered_package_shows_nothing_of_it(path, capsys, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
    assert main(["inspect", str(path)]) != 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("NOT VERIFIED: ")


@pytest.mark.usefixtures("_trusted")
def test_inspect_lets_nothing_turn_the_reading_direction(path, capsys):
    path.write_bytes(building.package(settings=building.run(description="safe\u202etxt.exe")))
    assert main(["inspect", str(path)]) == 0
    assert "description: safe\\u202etxt.exe" in capsys.readouterr().out


@pytest.mark.usefixtures("_trusted")
def test_unpack(path, tmp_path, capsys):
    assert main(["unpack", str(path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == building.weights()
    assert main(["unpack", str(path), str(tmp_path / "out")]) == 1
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["unpack", str(path), str(tmp_path / "new")]) == 11
    assert not (tmp_path / "new").exists()


def test_keys_from_creation_to_another_persons_trust(tmp_path, capsys, monkeypatch):
    assert main(["keys", "create"]) == 0
    fingerprint = keys.publisher_fingerprint()
    assert f"fingerprint {fingerprint}" in capsys.readouterr().out
    public = tmp_path / "bank.pub"
    assert main(["keys", "export", "--output", str(public)]) == 0
    assert main(["keys", "export", "--output", str(public)]) == 1
    capsys.readouterr()
    assert main(["keys", "export"]) == 0
    assert capsys.readouterr().out == public.read_text()
    package = tmp_path / "p.tgsp"
    content = container.parse(building.package())
    package.write_bytes(
        container.pack(manifest=bytes(content.manifest), payload=bytes(content.payload), key=keys.load_key())
    )
    assert main(["verify", str(package)]) == 0

    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path / "somebody else"))
    assert main(["verify", str(package)]) == 5
    assert main(["keys", "trust", str(public)]) == 0
    assert main(["keys", "trust", str(public)]) == 0
    assert [key.name for key in load_trust()] == ["bank"]
    assert main(["verify", str(package)]) == 0
    assert main(["keys", "untrust", fingerprint]) == 0
    assert main(["verify", str(package)]) == 5


def test_keys_list(capsys):
    assert main(["keys", "list"]) == 0
    assert "no key yet" in capsys.readouterr().out
    main(["keys", "create"])
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["signing_key"]["fingerprint"] == keys.publisher_fingerprint()
    assert listed["trusted"] == [{"name": "publisher", "fingerprint": keys.publisher_fingerprint()}]
    assert main(["keys", "list"]) == 0
    assert f"trusted: publisher {keys.publisher_fingerprint()}" in capsys.readouterr().out


def test_no_command_shows_the_private_half(path, capsys):
    main(["keys", "create"])
    for command in (["keys", "list"], ["keys", "list", "--json"], ["keys", "export"], ["verify", str(path)]):
        main(command)
    shown = capsys.readouterr()
    secret = keys.key_path().read_text().splitlines()[1]
    assert secret not in shown.out + shown.err


@pytest.mark.usefixtures("_trusted")
def test_verify_needs_no_heavy_library(path):
    code = (
        "import sys; from sealed_experts.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'peft', 'dp_accounting', 'scipy'} & set(sys.modules); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    subprocess.run([sys.executable, "-c", code, "verify", str(path)], env=environment, check=True, timeout=60)
