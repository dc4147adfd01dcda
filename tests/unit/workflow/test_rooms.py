"""The structure holds: a room knows only the rooms above it, light rooms stay light, no script shadows a module."""

import ast
import graphlib
import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = ROOT / "scripts" / "sealed_experts"
# From the top down: a room imports only from rooms before it (and from itself).
ROOMS = [
    *("text", "errors", "machine", "features", "files", "settings", "progress", "data", "models", "privacy", "rewards"),
    *("metrics", "training", "evaluation", "packages", "moe", "configuration", "cli"),
]
# The same inside the packages room; what is not named here may import all of them.
PACKAGES = [
    *(
        "errors",
        "report",
        "source",
        "settings",
        "settings_checks",
        "times",
        "job",
        "keys",
        "content",
        "recipients",
        "tgsp",
        "expert",
    ),
]
HEAVY = {"torch", "transformers", "peft", "opacus", "datasets", "snakemake"}
LIGHT = {
    *("text", "settings", "files", "machine", "features", "progress", "rewards", "metrics", "packages"),
    *("configuration", "cli", "evaluation/settings.py", "evaluation/job.py", "evaluation/selection.py"),
    *("errors", "privacy/ledger", "privacy/settings.py", "models/adapters", "models/settings.py", "data"),
    *("training/objectives", "training/objective.py", "training/baseline.py", "moe/router.py", "moe/settings.py"),
}


def imports(path):
    """Yield the modules that a file imports, and whether at its top level."""
    tree = ast.parse(path.read_text())
    typing_only = {id(n) for block in ast.walk(tree) if _is_type_checking(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            yield name, node in tree.body


def imported_modules(path):
    """Yield the full name of everything that a file imports anywhere, submodules of a package too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def modules():
    return [path for path in LIBRARY.rglob("*.py") if path.relative_to(LIBRARY).parts[0] != "__init__.py"]


def room_of(path):
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_room_knows_only_the_rooms_above_it(path):
    own = ROOMS.index(room_of(path))
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "sealed_experts" and len(parts) > 1:
            assert ROOMS.index(parts[1]) <= own, f"{path} imports {name}"


def test_the_ledger_knows_neither_plans_nor_engines():
    """The plan of a stage, and what trains by it, rest on the ledger."""
    for path in (LIBRARY / "privacy" / "ledger").glob("*.py"):
        for name, _ in imports(path):
            assert not name.startswith("sealed_experts.privacy.") or ".ledger" in name, f"{path} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    """Neither at the top, nor inside functions, nor for types alone."""
    names = {".".join(("sealed_experts", *p.relative_to(LIBRARY).with_suffix("").parts)): p for p in modules()}
    graph = {name: [each for each in imported_modules(path) if each in names] for name, path in names.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "path", sorted((LIBRARY / "packages").rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY / "packages"))
)
def test_a_part_of_packages_knows_only_the_parts_above_it(path):
    own = path.relative_to(LIBRARY / "packages").parts[0].removesuffix(".py")
    if own not in PACKAGES:
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[:2] == ["sealed_experts", "packages"] and len(parts) > 2:
            assert parts[2] in PACKAGES[: PACKAGES.index(own) + 1], f"{path} imports {name}"


def light_modules():
    return [path for path in modules() if any(str(path.relative_to(LIBRARY)).startswith(light) for light in LIGHT)]


@pytest.mark.parametrize("path", light_modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_light_rooms_import_nothing_heavy_at_the_top(path):
    assert [name for name, top in imports(path) if top and name.split(".")[0] in HEAVY] == []


@pytest.mark.parametrize(
    "module",
    [
        "configuration.resolution",
        "packages.tgsp.package",
        "privacy.ledger.receipt",
        "moe.router",
        "cli.main",
        "data.sources",
        "rewards.making.maker",
        "evaluation.settings",
        "evaluation.selection",
        "metrics.reward",
        "metrics.exact_match",
    ],
)
def test_importing_it_really_loads_no_torch(module):
    code = f"import sys, sealed_experts.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "scripts")}, check=False)
    assert done.returncode == 0


def test_only_one_module_says_which_characters_are_dangerous():
    marks = ("isprintable", r"\x7f", r"\u202")
    assert [path.name for path in modules() if any(mark in path.read_text() for mark in marks)] == ["text.py"]


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_carries_its_rules_name_and_shadows_no_module(script):
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    # Loops make `train_<stage>`, which scripts/train_stage.py serves, and rules whose name starts with the script's.
    loops = (f'f"{script.stem.removesuffix("stage")}{{stage}}"', f'"_".join(["{script.stem}", ')
    assert f"rule {script.stem}:" in rules or any(loop in rules for loop in loops)
    assert f"python scripts/{script.name} " in rules
    others = [path for path in sys.path if Path(path or ".").resolve() != ROOT / "scripts"]
    found = importlib.machinery.PathFinder.find_spec(script.stem, others)
    assert found is None
    assert script.stem not in sys.stdlib_module_names


def test_no_test_uses_a_private_name_of_the_library():
    """A test of private names fails when the code changes and its behaviour does not."""
    private = {
        name
        for path in LIBRARY.rglob("*.py")
        for name in _defined(ast.parse(path.read_text()))
        if name.startswith("_") and not name.startswith("__") and name != "_"
    }
    used = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for line, name in _used_from_outside(ast.parse(path.read_text()))
        if name in private
    ]
    assert not used, used


def _defined(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _used_from_outside(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sealed_experts"):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            texts = (each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str))
            yield from ((node.lineno, text.rpartition(".")[2]) for text in texts)
