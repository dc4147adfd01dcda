"""The registry: what is installed was verified, fits what is there, and arrives whole or not at all."""

import json
import os
from pathlib import Path

import pytest
from tests.attacks import building, expert_building

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError
from sealed_experts.files import digests
from sealed_experts.files.canonical import write_json
from sealed_experts.sealing import registry as registries
from sealed_experts.sealing.errors import IncompatibleError, SignatureError
from sealed_experts.sealing.keys.publisher import Publisher
from sealed_experts.sealing.keys.trust import TrustStore, trust_key
from sealed_experts.sealing.registry import Registry, long_name
from sealed_experts.settings.packages import ConstraintSettings, PackageSettings

OTHER_BASE = {"name": "org/Other-1.5B", "revision": None, "digest": "c" * 64}


def made(folder: Path, name: str = "tiny_expert", version: str = "1.0.0", *, container="expert", **options) -> Path:
    """Write a package; `base` is its base, the other options are its constraints."""
    base = options.pop("base", {"name": "tiny", "revision": None, "digest": "b" * 64})
    settings = building.run(
        name=name, version=version, package=PackageSettings(constraints=ConstraintSettings(**options))
    )
    changes = {
        "settings": settings,
        "base": base,
        "metrics": building.metrics(base_digest=base["digest"]),
        "adapter_config": building.adapter_config(base_model_name_or_path=base["name"]),
    }
    package = building.package(**changes)
    path = folder / f"{name}-{version}-{base['digest'][:1]}.{container}"
    path.write_bytes(package if container == "tgsp" else expert_building.sealed(package))
    return path


@pytest.fixture
def registry(tmp_path):
    return Registry(folder=tmp_path / "registry", trust=building.trust())


def names(registry: Registry) -> list[str]:
    return sorted(name for name in os.listdir(registry.folder) if name != ".lock")


@pytest.mark.parametrize("container", ["tgsp", "expert"])
def test_a_package_is_installed_under_its_long_name(registry, tmp_path, container):
    path = made(tmp_path, container=container)
    installed = registry.install(path)
    assert installed.path == registry.folder / f"tiny_expert-tiny.v1.0.0.{container}"
    assert installed.path.read_bytes() == path.read_bytes()
    assert names(registry) == [installed.path.name]
    assert [package.path for package in registry.packages()] == [installed.path]
    assert registry.install(path).path == installed.path, "once more changes nothing"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "e-Qwen-Qwen2.5-1.5B-Instruct.v1.0.0"),
        ("../../etc/passwd", "e-etc-passwd.v1.0.0"),
        ("..", "e-base.v1.0.0"),
        ("a b\x00c\u202e", "e-a-b-c.v1.0.0"),
        ("x" * 300, f"e-{'x' * 80}.v1.0.0"),
    ],
)
def test_a_long_name_is_a_file_name_whatever_the_base_is_called(base, expected):
    assert long_name({"name": "e", "version": "1.0.0", "base": {"name": base}}) == expected


def test_what_does_not_verify_is_not_installed(registry, tmp_path):
    path = made(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=f"^{path}: "):
        registry.install(path)
    assert names(registry) == []
    with pytest.raises(SignatureError, match="not trusted"):
        Registry(folder=registry.folder, trust=TrustStore([])).install(made(tmp_path))
    assert names(registry) == []


def test_a_package_that_is_swapped_while_it_is_installed_is_not_what_was_verified(registry, tmp_path, monkeypatch):
    """The copy is verified, not the path that somebody else can write to."""
    path, verified = made(tmp_path), []
    verify = registries.opening.verify_any

    def swapping(opened, **options):
        verified.append(opened)
        path.write_bytes(b"something else")
        return verify(opened, **options)

    monkeypatch.setattr(registries.opening, "verify_any", swapping)
    installed = registry.install(path)
    assert path not in verified
    monkeypatch.undo()
    assert registry.packages()[0].report.digest == digests.sha256_file(installed.path)


def test_what_no_package_can_be_is_not_even_copied(registry, tmp_path):
    path = tmp_path / "huge.expert"
    with open(path, "wb") as stream:
        stream.write(expert_building.honest()[:100])
        stream.truncate(1 << 42)
    with pytest.raises(UserError, match="a package has at most"):
        registry.install(path)
    path.write_text("no package")
    with pytest.raises(UserError, match="this is no package"):
        registry.install(path)
    assert names(registry) == []


def test_nothing_is_left_of_an_installation_that_was_interrupted(registry, tmp_path, monkeypatch):
    path = made(tmp_path)

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(registries.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.install(path)
    monkeypatch.undo()
    assert names(registry) == []


# Constraints


def test_an_expert_that_requires_another_is_refused_without_it(registry, tmp_path):
    path = made(tmp_path, "loans", requires=("tokens@>=1.2.0",))
    with pytest.raises(IncompatibleError, match=r"loans 1\.0\.0 requires tokens@>=1\.2\.0, but no tokens is installed"):
        registry.install(path)
    registry.install(made(tmp_path, "tokens", "1.1.0"))
    with pytest.raises(IncompatibleError, match=r"requires tokens@>=1\.2\.0, but tokens 1\.1\.0 is installed"):
        registry.install(path)
    registry.install(made(tmp_path, "tokens", "1.2.0"), upgrade=True)
    registry.install(path)
    assert len(names(registry)) == 2


def test_one_for_another_base_does_not_count(registry, tmp_path):
    registry.install(made(tmp_path, "tokens", base=OTHER_BASE))
    with pytest.raises(IncompatibleError, match=r"tokens 1\.0\.0 is installed for the base of digest cccc"):
        registry.install(made(tmp_path, "loans", requires=("tokens@*",)))


@pytest.mark.parametrize("order", [("loans", "cards"), ("cards", "loans")])
def test_experts_that_exclude_each_other_are_refused_whichever_comes_second(registry, tmp_path, order):
    paths = {
        "loans": made(tmp_path, "loans", "2.0.0", incompatible_with=("cards@<3.0.0",)),
        "cards": made(tmp_path, "cards", "2.5.0"),
    }
    registry.install(paths[order[0]])
    with pytest.raises(IncompatibleError) as caught:
        registry.install(paths[order[1]])
    message = str(caught.value)
    assert "loans 2.0.0 is incompatible with cards@<3.0.0" in message
    assert "cards 2.5.0" in message
    assert len(names(registry)) == 1


def test_experts_of_different_bases_do_not_exclude_each_other(registry, tmp_path):
    registry.install(made(tmp_path, "loans", incompatible_with=("cards@*",)))
    registry.install(made(tmp_path, "cards", base=OTHER_BASE))
    registry.install(made(tmp_path, "cards_too"))
    assert names(registry) == [
        "cards-org-Other-1.5B.v1.0.0.expert",
        "cards_too-tiny.v1.0.0.expert",
        "loans-tiny.v1.0.0.expert",
    ]


def test_another_base_is_refused_by_both_digests(registry, tmp_path):
    with pytest.raises(IncompatibleError) as caught:
        registry.install(made(tmp_path), base_digest="c" * 64)
    assert "tiny_expert 1.0.0 belongs to the base 'tiny' of digest " + "b" * 64 in str(caught.value)
    assert "the given base has " + "c" * 64 in str(caught.value)
    registry.install(made(tmp_path), base_digest="b" * 64)


def test_another_version_needs_upgrade_and_then_replaces(registry, tmp_path):
    registry.install(made(tmp_path))
    newer = made(tmp_path, version="1.1.0")
    with pytest.raises(IncompatibleError, match=r"1\.1\.0 cannot be installed beside tiny_expert 1\.0\.0"):
        registry.install(newer)
    registry.install(newer, upgrade=True)
    assert names(registry) == ["tiny_expert-tiny.v1.1.0.expert"]


def test_an_upgrade_that_another_does_not_bear_is_refused(registry, tmp_path):
    registry.install(made(tmp_path, "tokens"))
    registry.install(made(tmp_path, "loans", requires=("tokens@^1.0",)))
    with pytest.raises(IncompatibleError, match=r"loans 1\.0\.0 requires tokens@\^1\.0, but tokens 2\.0\.0"):
        registry.install(made(tmp_path, "tokens", "2.0.0"), upgrade=True)
    assert "tokens-tiny.v1.0.0.expert" in names(registry)


def test_a_version_never_changes(registry, tmp_path):
    installed = registry.install(made(tmp_path)).path
    before = installed.read_bytes()
    with pytest.raises(UserError, match="a version never changes"):
        registry.install(made(tmp_path, max_chain=3))
    assert installed.read_bytes() == before


def test_uninstall_refuses_what_another_requires(registry, tmp_path):
    registry.install(made(tmp_path, "tokens"))
    registry.install(made(tmp_path, "loans", requires=("tokens@*",)))
    with pytest.raises(IncompatibleError, match=r"tokens 1\.0\.0 cannot be uninstalled: loans 1\.0\.0 requires"):
        registry.uninstall("tokens")
    registry.uninstall("loans@1.0.0")
    registry.uninstall("tokens-tiny.v1.0.0.expert")
    assert names(registry) == []
    with pytest.raises(UserError, match="no installed package is called 'tokens'"):
        registry.uninstall("tokens")


def test_uninstall_asks_which_of_several_is_meant(registry, tmp_path):
    registry.install(made(tmp_path))
    registry.install(made(tmp_path, base=OTHER_BASE))
    with pytest.raises(UserError, match="means several packages"):
        registry.uninstall("tiny_expert")
    registry.uninstall("tiny_expert-tiny.v1.0.0")
    assert names(registry) == ["tiny_expert-org-Other-1.5B.v1.0.0.expert"]


def test_a_revoked_publishers_packages_are_listed_as_refused_and_count_for_nothing(registry, tmp_path):
    registry.install(made(tmp_path, "tokens"))
    revoked = Publisher(**{**vars(building.key().public), "revoked": "its disk was stolen"})
    later = Registry(folder=registry.folder, trust=TrustStore([revoked]))
    (package,) = later.packages()
    assert package.report is None
    assert "was revoked" in package.refusal
    later.uninstall(package.path.name)
    assert names(registry) == []


def test_a_file_that_was_altered_where_it_lies_is_refused(registry, tmp_path):
    path = registry.install(made(tmp_path)).path
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    assert registry.packages()[0].refusal.startswith(f"{path}: ")
    with pytest.raises(UserError, match="installed with other content"):
        registry.install(made(tmp_path))


# The commands


def test_the_commands_from_publishing_to_uninstalling(tmp_path, capsys, monkeypatch):
    trust_key(building.key().public.raw, name="bank")
    path = made(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    write_json(base / "base.json", {"digest": "b" * 64})
    assert main(["list"]) == 0
    assert "holds no packages yet" in capsys.readouterr().out
    assert main(["install", str(path), "--base", str(base)]) == 0
    home = Path(os.environ["SEALED_EXPERTS_HOME"])
    assert (home / "registry" / "tiny_expert-tiny.v1.0.0.expert").is_file()
    assert main(["list", "--json"]) == 0
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["packages"]
    assert (entry["ok"], entry["name"], entry["publisher_name"]) == (True, "tiny_expert", "bank")
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("verified tiny_expert 1.0.0 on tiny, ε 4.2, by bank")
    write_json(base / "base.json", {"digest": "d" * 64})
    assert main(["install", str(path), "--base", str(base / "base.json")]) == 4
    assert main(["install", str(path), "--base", str(tmp_path / "none")]) == 1
    assert main(["keys", "untrust", "bank"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 1
    assert capsys.readouterr().out.startswith("REFUSED  tiny_expert-tiny.v1.0.0.expert: ")
    assert main(["uninstall", "tiny_expert-tiny.v1.0.0"]) == 0
    assert main(["uninstall", "tiny_expert-tiny.v1.0.0"]) == 1


def test_another_folder_can_be_the_registry(tmp_path):
    trust_key(building.key().public.raw, name="bank")
    elsewhere = tmp_path / "shared" / "experts"
    assert main(["install", str(made(tmp_path)), "--registry", str(elsewhere)]) == 0
    assert main(["list", "--registry", str(elsewhere)]) == 0
    assert main(["uninstall", "tiny_expert", "--registry", str(elsewhere)]) == 0


@pytest.mark.parametrize("constraint", ["requires", "incompatible_with"])
def test_refusals_are_one_line_with_the_code_of_incompatibility(tmp_path, capsys, constraint):
    trust_key(building.key().public.raw, name="bank")
    if constraint == "incompatible_with":
        assert main(["install", str(made(tmp_path, "cards"))]) == 0
    path = made(tmp_path, "loans", **{constraint: ("cards@*",)})
    capsys.readouterr()
    assert main(["install", str(path)]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
