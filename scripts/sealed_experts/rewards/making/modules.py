"""Find the modules of users' reward functions without running them."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def user_function(name: str) -> tuple[str, str] | None:
    """Return module and function of a user's reward; None for a name without a colon."""
    module, colon, function = name.partition(":")
    return (module, function) if colon else None


def find_module(module: str) -> ModuleSpec | None:
    """Return where a module would be imported from, without running it or the packages around it.

    The search uses Python's own path, and then the current folder. Also None for a folder that is no package.
    """
    importlib.invalidate_caches()
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        if (spec is not None and spec.submodule_search_locations is None) or not part.isidentifier():
            return None
        name = f"{name}.{part}" if name else part
        spec = _find(name, spec.submodule_search_locations if spec is not None else None)
        if spec is None:
            return None
    return spec if spec is not None and spec.origin else None


def _find(name: str, parents: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, parents)
        if spec is not None:
            return spec
    return PathFinder.find_spec(name, [str(Path.cwd())]) if parents is None else None
