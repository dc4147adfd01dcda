"""One set of versions: requirements.txt, the conda environments and the containers say the same."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def lock():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def dependencies(path):
    """The conda packages and the pip packages of an environment."""
    listed = yaml.safe_load(path.read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    return [entry for entry in listed if isinstance(entry, str)], pip


def test_every_requirement_is_pinned():
    for line in lock():
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "==", line
        assert not specifier.version.endswith("*"), line


def test_the_environment_that_trains_is_the_lock():
    assert dependencies(ROOT / "envs" / "train.yaml")[1] == lock()


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_holds_only_versions_of_the_lock(path):
    conda, pip = dependencies(path)
    assert set(pip) <= set(lock())
    minimum = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert conda == [f"python={minimum}", "pip"]


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_is_complete(path):
    """Whatever a listed package needs is listed: pip would otherwise choose a version by itself."""
    pinned = {canonicalize_name(Requirement(line).name) for line in dependencies(path)[1]}
    for name in pinned:
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another version of Python
        for requirement in map(Requirement, needed):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            # PyTorch's build for GPUs brings NVIDIA's libraries in the versions that it names itself.
            if wanted and not requirement.name.startswith(("nvidia-", "cuda-", "triton")):
                assert canonicalize_name(requirement.name) in pinned, f"{name} needs {requirement}"


def test_the_rules_name_environments_that_exist():
    named = {
        name for path in (ROOT / "rules").glob("*.smk") for name in re.findall(r'"\.\./(envs/.+?)"', path.read_text())
    }
    assert {ROOT / name for name in named} == set(ENVIRONMENTS)


def test_the_reports_scripts_import_nothing_that_their_environment_lacks():
    rules = (ROOT / "rules" / "report.smk").read_text()
    scripts = re.findall(r"python scripts/(\w+)\.py", rules)
    assert rules.count("envs/report.yaml") == len(scripts) > 0
    pinned = {canonicalize_name(Requirement(line).name) for line in dependencies(ROOT / "envs" / "report.yaml")[1]}
    listing = (
        "import sys, importlib.metadata as metadata\n"
        "sys.path.insert(0, 'scripts')\n"
        "before = set(sys.modules)\n"
        f"import {', '.join(scripts)}\n"
        "owners = metadata.packages_distributions()\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted({owner for top in tops for owner in owners.get(top, [])}))\n"
    )
    done = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {canonicalize_name(name) for name in ast.literal_eval(done.stdout)}
    assert imported - {"sealed-experts"} <= pinned
    assert "matplotlib" in imported


# Recipes


def recipe(name):
    lines = (ROOT / "envs" / name).read_text().splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def copied(name):
    """(source, target) of each file that a recipe takes from the repository."""
    if name == "Dockerfile":
        lines = [line.split()[1:] for line in recipe(name) if line.startswith("COPY ")]
        return [tuple(word for word in line if not word.startswith("--")) for line in lines]
    lines = recipe(name)
    section = lines[lines.index("%files") + 1 :]
    return [tuple(line.split()) for line in section[: section.index("")]]


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_a_recipe_builds_from_the_environment_that_trains(name):
    assert [source for source, _ in copied(name)] == ["envs/train.yaml"]
    for source, target in copied(name):
        assert (ROOT / source).is_file()
        installs = [line for line in recipe(name) if "micromamba install" in line]
        assert [f"--file {target}" in line for line in installs] == [True]


def test_both_recipes_start_from_the_same_fixed_image():
    images = [
        line.split()[1]
        for name in ("Dockerfile", "apptainer.def")
        for line in recipe(name)
        if re.match("(?i)from", line)
    ]
    assert len(images) == 2
    assert len(set(images)) == 1
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", images[0])


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_a_recipe_starts_a_command_that_there_is(name):
    text = " ".join(re.findall(r"[\w.:-]+", "\n".join(recipe(name))))
    assert "python -m sealed_experts.cli.main run --cores all" in text
    help_text = subprocess.run(
        [sys.executable, "-m", "sealed_experts.cli.main", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "Snakemake" in help_text


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_how_a_recipe_is_built_is_documented(name):
    assert f"envs/{name}" in (ROOT / "docs" / "slurm.md").read_text()
