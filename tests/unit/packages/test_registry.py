"""The registry: an installed package was verified, fits the others, and is complete or not there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError
from sealed_experts.files import digests
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.models.manifest import write_base_manifest
from sealed_experts.packages import registry as registries
from sealed_experts.packages.base_modules import BaseModules
from sealed_experts.packages.content.manifest import long_name
from sealed_experts.packages.errors import IncompatibleError, SignatureError
from sealed_experts.packages.installed import users_trust_and
from sealed_experts.packages.keys.policy import Policy
from sealed_experts.packages.keys.publisher import Publisher
from sealed_experts.packages.keys.trust import TrustStore, trust_publisher
from sealed_experts.packages.recipients.encryption import generate_identity
from sealed_experts.packages.registry import Registry
from sealed_experts.packages.settings import ConstraintSettings, PackageSettings
from tests.attacks import building, expert_building

OTHER_BASE = {"name": "org/Other-1.5B", "revision": None, "digest": "c" * 64}


def made(
    folder: Path,
    name: str = "tiny_expert",
    version: str = "1.0.0",
    *,
    container="expert",
    by=1,
    storage=None,
    **options,
) -> Path:
    """Write a package: `base` is its base, `by` is its publisher's number, the other options are its constraints."""
    base = options.pop("base", {"name": "tiny", "revision": None, "digest": "b" * 64})
    settings = building.run(
        name=name, version=version, package=PackageSettings(constraints=ConstraintSettings(**options))
    )
    changes = {
        "settings": settings,
        "base": base,
        "metrics": building.metrics(base_digest=base["digest"]),
        "adapter_config": building.adapter_config(
            base_model_name_or_path=f"local:{base['name']}@sha256:{base['digest']}"
        ),
    }
    package = building.package(by=building.key(by), storage=storage, **changes)
    path = folder / f"{name}-{version}-{base['digest'][:1]}.{container}"
    path.write_bytes(package if container == "tgsp" else expert_building.sealed(package, number=by))
    return path


def made_base(folder: Path, *, width: int = building.WIDTH, modules=building.MODULES) -> Path:
    """Write the folder of a base whose modules, on two layers, are square matrices of this width."""
    folder.mkdir()
    arrays = {f"{module}.weight": np.zeros((width, width), dtype="<f4") for module in modules}
    arrays["model.embed_tokens.weight"] = np.zeros((7, width), dtype="<f4")
    arrays["model.norm.weight"] = np.zeros(width, dtype="<f4")
    (folder / "model.safetensors").write_bytes(save(arrays))
    write_json(folder / "config.json", {"model_type": "tiny"})
    sizes = {module: [width, width] for module in modules}
    write_base_manifest(folder, name="tiny", revision=None, key="tiny", modules=sizes)
    return folder


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
    with pytest.raises(SignatureError, match="not trusted"):
        Registry(folder=registry.folder, trust=TrustStore([])).install(made(tmp_path))
    assert not registry.folder.exists()


def test_a_package_that_is_swapped_while_it_is_installed_is_not_what_was_verified(registry, tmp_path, monkeypatch):
    """The copy is verified, not the file at a path that somebody else can write to."""
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


def test_what_no_package_can_be_is_not_even_copied(registry, tmp_path, monkeypatch):
    """A sparse file of two gigabytes was once copied to two real ones before its framing was checked."""
    path = tmp_path / "huge.expert"
    with open(path, "wb") as stream:
        stream.write(expert_building.honest()[:100])
        stream.truncate(1 << 42)
    copied = []
    monkeypatch.setattr(registries, "copy_package", lambda *arguments: copied.append(arguments))
    with pytest.raises(UserError, match=r"its gzip layer has|impossible size"):
        registry.install(path)
    assert not registry.folder.exists()
    frame = building.container.HEADER.pack(building.container.MAGIC, 1, 2, 0, 2 << 30, 200)
    with open(path, "wb") as stream:
        stream.write(frame + b"{}")
        stream.truncate(len(frame) + 2 + (2 << 30) + 200)
    with pytest.raises(UserError, match="the signature block has 0 signatures"):
        registry.install(path)
    with pytest.raises(SignatureError, match="not trusted"):
        registry.install(made(tmp_path, by=2))
    assert copied == []
    monkeypatch.undo()
    path.write_text("no package")
    with pytest.raises(UserError, match="this is not a package"):
        registry.install(path)
    assert not registry.folder.exists()


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
        registry.install(made(tmp_path), base=BaseModules(digest="c" * 64))
    assert "tiny_expert 1.0.0 belongs to the base 'tiny' of digest " + "b" * 64 in str(caught.value)
    assert "the given base has " + "c" * 64 in str(caught.value)
    registry.install(made(tmp_path), base=BaseModules(digest="b" * 64))


def test_another_version_needs_upgrade_and_then_replaces(registry, tmp_path):
    registry.install(made(tmp_path))
    newer = made(tmp_path, version="1.1.0")
    with pytest.raises(IncompatibleError, match=r"1\.1\.0 cannot be installed together with tiny_expert 1\.0\.0"):
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


@pytest.mark.parametrize("upgrade", [False, True])
def test_an_upgrade_does_not_replace_the_same_version_in_the_other_container(registry, tmp_path, upgrade):
    """A .tgsp with two signatures was once replaced by the Ed25519-only file of the same version."""
    installed = registry.install(made(tmp_path, container="tgsp")).path
    before, other = installed.read_bytes(), made(tmp_path)
    with pytest.raises(
        UserError, match=r"is installed as tiny_expert-tiny\.v1\.0\.0\.tgsp, .* uninstall the installed one first"
    ):
        registry.install(other, upgrade=upgrade)
    assert (names(registry), installed.read_bytes()) == (["tiny_expert-tiny.v1.0.0.tgsp"], before)
    assert registry.install(made(tmp_path, container="tgsp"), upgrade=True).path == installed, "the same bytes"
    registry.uninstall("tiny_expert")
    assert registry.install(other)


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


# Judging what is installed


def narrowed(registry: Registry, number: int = 2, **options) -> Registry:
    """Return the same registry for a user who trusts several publishers, but only one for this command."""
    return Registry(
        folder=registry.folder,
        trust=building.trust(number),
        installed_trust=users_trust_and(building.trust(number)),
        **options,
    )


@pytest.fixture
def two_known():
    """The user trusts the publishers 1 and 2."""
    for number in (1, 2):
        trust_publisher(Publisher(**{**vars(building.key(number).public), "name": f"key{number}"}))


@pytest.mark.usefixtures("two_known")
def test_a_narrower_trust_does_not_take_constraints_away(registry, tmp_path):
    """Packages that --trust did not accept were once ignored, with all their constraints."""
    registry.install(made(tmp_path, "loans", incompatible_with=("cards@*",)))
    with pytest.raises(IncompatibleError, match=r"loans 1\.0\.0 is incompatible with cards"):
        narrowed(registry).install(made(tmp_path, "cards", by=2))
    with pytest.raises(IncompatibleError, match=r"loans 2\.0\.0 cannot be installed together with loans 1\.0\.0"):
        narrowed(registry).install(made(tmp_path, "loans", "2.0.0", by=2))
    strict = Registry(folder=registry.folder, trust=building.trust(), policy=Policy(max_epsilon=1.0))
    with pytest.raises(IncompatibleError, match=r"loans 1\.0\.0 is incompatible with cards"):
        Registry(**{**vars(strict), "policy": Policy(experts=("cards",))}).install(made(tmp_path, "cards"))
    assert len(names(registry)) == 1


def test_a_package_whose_publisher_is_not_trusted_any_more_still_excludes_and_gives_nothing(registry, tmp_path):
    registry.install(made(tmp_path, "loans", incompatible_with=("cards@*",)))
    registry.install(made(tmp_path, "tokens"))
    later = Registry(folder=registry.folder, trust=building.trust(2))
    with pytest.raises(IncompatibleError, match=r"loans 1\.0\.0 is incompatible with cards"):
        later.install(made(tmp_path, "cards", by=2))
    with pytest.raises(IncompatibleError, match=r"tokens 1\.0\.0 is refused here"):
        later.install(made(tmp_path, "needs", by=2, requires=("tokens@*",)))


def test_one_that_is_encrypted_for_others_is_judged_by_its_signed_manifest(registry, tmp_path):
    identity = generate_identity()
    storage = {"recipients": [identity.recipient]}
    path = made(tmp_path, "loans", container="tgsp", storage=storage, incompatible_with=("cards@*",))
    Registry(folder=registry.folder, trust=registry.trust, identity=identity).install(path)
    with pytest.raises(IncompatibleError, match=r"loans 1\.0\.0 is incompatible with cards"):
        registry.install(made(tmp_path, "cards"))


@pytest.mark.parametrize("kind", ["altered", "folder", "fifo", "link", "foreign"])
def test_nothing_changes_beside_a_file_that_nobody_can_judge(registry, tmp_path, kind):
    kept = registry.install(made(tmp_path, "tokens")).path
    other = registry.folder / "other.expert"
    data = bytearray(kept.read_bytes())
    data[2000] ^= 1
    {
        "altered": lambda: other.write_bytes(data),
        "folder": other.mkdir,
        "fifo": lambda: os.mkfifo(other),
        "link": lambda: other.symlink_to(kept),
        "foreign": lambda: other.write_bytes(b"x"),
    }[kind]()
    with pytest.raises(UserError, match=r"nothing is installed while other\.expert is in the registry"):
        registry.install(made(tmp_path, "cards"))
    with pytest.raises(UserError, match=r"nothing is uninstalled while other\.expert is in the registry"):
        registry.uninstall("tokens")
    if kind == "folder":
        with pytest.raises(UserError, match="remove it yourself"):
            registry.uninstall("other.expert")
        other.rmdir()
    else:
        registry.uninstall("other.expert")
    assert kept.exists()
    registry.uninstall("tokens")


def test_a_package_under_another_name_is_refused_and_still_excludes(registry, tmp_path):
    installed = registry.install(made(tmp_path, "loans", incompatible_with=("cards@*",))).path
    installed.rename(registry.folder / "bank_official-demo.v9.9.9.expert")
    (package,) = registry.packages()
    assert "it holds loans-tiny.v1.0.0.expert" in package.refusal
    with pytest.raises(IncompatibleError, match="is incompatible with cards"):
        registry.install(made(tmp_path, "cards"))


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_stands_at_a_packages_name_is_one_refusal(registry, tmp_path, kind):
    path = made(tmp_path)
    target = registry.install(path).path
    target.unlink()
    {"folder": target.mkdir, "fifo": lambda: os.mkfifo(target), "link": lambda: target.symlink_to(path)}[kind]()
    with pytest.raises(UserError, match="is in the way"):
        registry.install(path)


def test_two_experts_of_one_long_name_are_told_apart(registry, tmp_path):
    registry.install(made(tmp_path, "a", base={"name": "b-c", "revision": None, "digest": "b" * 64}))
    with pytest.raises(IncompatibleError, match=r"is also the long name of a 1\.0\.0 on the base 'b-c'"):
        registry.install(made(tmp_path, "a-b", base={"name": "c", "revision": None, "digest": "c" * 64}))


def test_an_upgrade_goes_up_only(registry, tmp_path):
    registry.install(made(tmp_path, version="2.0.0"))
    with pytest.raises(IncompatibleError, match=r"1\.0\.0 does not replace tiny_expert 2\.0\.0, which is higher"):
        registry.install(made(tmp_path, version="1.0.0"), upgrade=True)


def test_an_upgrade_by_another_publisher_needs_a_word_of_its_own(tmp_path):
    keys = [building.key(number).public for number in (1, 2)]
    registry = Registry(folder=tmp_path / "registry", trust=TrustStore(keys))
    registry.install(made(tmp_path))
    newer = made(tmp_path, version="2.0.0", by=2)
    with pytest.raises(IncompatibleError, match="give --change-publisher"):
        registry.install(newer, upgrade=True)
    rotated = Publisher(**{**vars(keys[1]), "ancestors": (keys[0].fingerprint,)})
    assert Registry(folder=registry.folder, trust=TrustStore([keys[0], rotated])).install(newer, upgrade=True)
    newest = made(tmp_path, version="3.0.0")
    registry.install(newest, upgrade=True, change_publisher=True)
    assert names(registry) == ["tiny_expert-tiny.v3.0.0.expert"]


# The base


def fitting(folder: Path, base: Path, **options) -> Path:
    return made(
        folder, base={"name": "tiny", "revision": None, "digest": read_json(base / "base.json")["digest"]}, **options
    )


@pytest.mark.parametrize("container", ["tgsp", "expert"])
def test_an_adapter_that_fits_its_base_is_installed(tmp_path, capsys, container):
    building.trust_key(building.key().public.raw, name="bank")
    base = made_base(tmp_path / "base")
    path = fitting(tmp_path, base, container=container)
    assert main(["verify", str(path), "--base", str(base)]) == 0
    assert f"{path}: fits the base tiny (compared its digest and every tensor)" in capsys.readouterr().out.splitlines()
    assert main(["install", str(path), "--base", str(base)]) == 0
    assert main(["install", str(path), "--base", str(base / "base.json")]) == 0


def test_verify_says_for_programs_what_it_found_about_the_base(tmp_path, capsys):
    """It once printed nothing, so a user could not notice a wrong option."""
    building.trust_key(building.key().public.raw, name="bank")
    base = made_base(tmp_path / "base")
    path = fitting(tmp_path, base)
    for options, expected in (
        ([], None),
        (["--base", str(base)], {"name": "tiny", "tensors_compared": True}),
        (["--base", str(base / "base.json")], {"name": "tiny", "tensors_compared": False}),
    ):
        assert main(["verify", str(path), "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["fits_base"] == expected


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"width": 8}, 11, r"q_proj.lora_A.weight has the shape [2, 4]; the base needs [2, 8]"),
        ({"modules": building.MODULES[:1]}, 11, "v_proj.lora_A.weight belongs to no module of the base"),
        (
            {"modules": (*building.MODULES, "model.layers.1.self_attn.q_proj")},
            11,
            "layers.1.self_attn.q_proj.lora_A.weight is missing",
        ),
    ],
)
def test_an_adapter_that_its_base_has_no_place_for_is_refused(tmp_path, capsys, changes, code, message):
    """Once only the digest was compared, and an adapter of other shapes was found only when it was loaded."""
    building.trust_key(building.key().public.raw, name="bank")
    base = made_base(tmp_path / "base", **changes)
    path = fitting(tmp_path, base)
    for command in ("verify", "install"):
        assert main([command, str(path), "--base", str(base)]) == code
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.count("\n") == 1
    assert main(["verify", str(path), "--base", str(base / "base.json")]) == 0


def test_a_base_whose_files_are_not_those_of_its_digest_is_refused(tmp_path, capsys):
    building.trust_key(building.key().public.raw, name="bank")
    base = made_base(tmp_path / "base")
    path = fitting(tmp_path, base)
    (base / "config.json").write_text("{}")
    assert main(["install", str(path), "--base", str(base)]) == 1
    assert "config.json (changed)" in capsys.readouterr().err


# The commands


def test_uninstall_lets_nobody_narrow_whom_to_trust(tmp_path):
    with pytest.raises(SystemExit):
        main(["uninstall", "x", "--trust", str(tmp_path)])
    assert main(["install", "x", "--change-publisher"]) == 2


def test_the_commands_from_publishing_to_uninstalling(tmp_path, capsys, monkeypatch):
    building.trust_key(building.key().public.raw, name="bank")
    base = made_base(tmp_path / "base")
    path = made(tmp_path, base={"name": "tiny", "revision": None, "digest": read_json(base / "base.json")["digest"]})
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
    write_json(tmp_path / "base.json", {"digest": "d" * 64})
    assert main(["install", str(path), "--base", str(tmp_path / "base.json")]) == 4
    assert main(["install", str(path), "--base", str(tmp_path / "none")]) == 1
    assert main(["keys", "untrust", "bank"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 1
    assert capsys.readouterr().out.startswith("REFUSED  tiny_expert-tiny.v1.0.0.expert: ")
    assert main(["uninstall", "tiny_expert-tiny.v1.0.0"]) == 0
    assert main(["uninstall", "tiny_expert-tiny.v1.0.0"]) == 1


def test_another_folder_can_be_the_registry(tmp_path):
    building.trust_key(building.key().public.raw, name="bank")
    elsewhere = tmp_path / "shared" / "experts"
    assert main(["install", str(made(tmp_path)), "--registry", str(elsewhere)]) == 0
    assert main(["list", "--registry", str(elsewhere)]) == 0
    assert main(["uninstall", "tiny_expert", "--registry", str(elsewhere)]) == 0


@pytest.mark.parametrize("constraint", ["requires", "incompatible_with"])
def test_refusals_are_one_line_with_the_code_of_incompatibility(tmp_path, capsys, constraint):
    building.trust_key(building.key().public.raw, name="bank")
    if constraint == "incompatible_with":
        assert main(["install", str(made(tmp_path, "cards"))]) == 0
    path = made(tmp_path, "loans", **{constraint: ("cards@*",)})
    capsys.readouterr()
    assert main(["install", str(path)]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
