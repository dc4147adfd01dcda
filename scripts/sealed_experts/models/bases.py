"""Find out what a base model's name means, without loading anything."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.models.architectures import MODULES
from sealed_experts.models.settings import BaseSettings

DEMO = "demo"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
DEMO_MODEL_TYPE = "qwen2"
# Weights as safetensors only: a pickle can run code when it is loaded.
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")


def base_kind(base: BaseSettings, *, root: Path) -> Literal["demo", "folder", "hub"] | None:
    """Return what `base.name` is; None if it is neither `demo`, nor an existing folder under `root`, nor a hub id."""
    if base.name == DEMO:
        return "demo"
    if os.path.isdir(folder_of(base, root=root)):  # unlike Path.is_dir, it accepts any text
        return "folder"
    return "hub" if HUB_ID.fullmatch(base.name) else None


def folder_of(base: BaseSettings, *, root: Path) -> Path:
    """Return the path of the folder `base.name`."""
    return root / os.path.expanduser(base.name)  # Path.expanduser would raise for an unknown `~user`


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
