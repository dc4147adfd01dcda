"""Which modules of this library decide the numbers of a run, and their digest.

These are the modules that `training/stage.py` imports, directly or through others, and the features that the run uses.
Imports are read from the source files, also those inside functions. What is loaded at run time does not matter.
"""

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sealed_experts.files.digests import digest_of, sha256_bytes

LIBRARY = Path(__file__).parent.parent
ENTRY = "training.stage"
# Modules that only watch, log, launch, lock or write messages. An edit of one must not make a run start again.
SILENT = frozenset(
    {
        *("errors", "machine", "text", "files.leases", "files.locks"),
        *("settings.messages", "settings.schema", "settings.texts"),
        *("training.deadline", "training.interruption", "training.launcher", "training.other_runs"),
        *("training.progress", "training.refusals"),
    }
)

Read = Callable[[Path], bytes]


def code_digest(chosen: Iterable[str], *, read: Read = Path.read_bytes) -> str:
    """Return a digest of the code that decides the numbers of a run, without comments and docstrings.

    Args:
        chosen: names of the modules of the features that the run uses, relative to the library.
        read: reads a source file.
    """
    modules = numeric_modules(chosen, read=read)
    return digest_of({name: sha256_bytes(_meaning(read(_file(name))).encode()) for name in sorted(modules)})


def numeric_modules(chosen: Iterable[str], *, read: Read = Path.read_bytes) -> set[str]:
    """Return the names of the modules that decide the numbers, relative to the library."""
    found: set[str] = set()
    waiting = [ENTRY, *chosen]
    while waiting:
        name = waiting.pop()
        if name in found or name in SILENT or not _file(name).is_file():
            continue
        found.add(name)
        waiting += _parents(name)
        waiting += _imports(read(_file(name)))
    return found


def _file(name: str) -> Path:
    path = LIBRARY.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _parents(name: str) -> Iterator[str]:
    """Yield the parent packages of a module, which Python runs when it imports the module."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@functools.lru_cache(maxsize=1024)
def _imports(source: bytes) -> tuple[str, ...]:
    """Return the library modules that a source imports. An imported name may be a module too."""
    tree = ast.parse(source)
    for_types = {id(node) for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
    names: list[str] = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    ours = f"{__name__.partition('.')[0]}."
    return tuple(name.removeprefix(ours) for name in names if name.startswith(ours))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.lru_cache(maxsize=1024)
def _meaning(source: bytes) -> str:
    """Return a source as its syntax tree, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
