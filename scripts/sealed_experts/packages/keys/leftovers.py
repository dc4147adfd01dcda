"""Clean up files that a killed command left in the folder of private keys."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import sync_folder
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.packages.keys.pem import known_public
from sealed_experts.packages.keys.private_file import read_private_file

# Names that the atomic writer uses. Such a file holds a private key or a part of one.
_TEMPORARY = re.compile(r"\..+\.(pem|rotation\.json\.staged)\.[0-9a-f]{16}\.tmp")
_STATEMENT, _STAGED = ".rotation.json", ".staged"


def stage_statement(retired: Path, statement: dict[str, Any]) -> Path:
    """Write a rotation's statement under a hidden name, until its new key is in place."""
    staged = retired.with_name(f".{retired.stem}{_STATEMENT}{_STAGED}")
    write_json(staged, statement)
    return staged


def show_statement(staged: Path) -> None:
    """Give a staged statement its real name, now that its new key is in place."""
    os.replace(staged, staged.with_name(staged.name.removeprefix(".").removesuffix(_STAGED)))
    sync_folder(staged.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove partly written private keys and staged statements whose new key is lost; show the other statements.

    The caller holds the folder's lock, so the commands that wrote these files have ended.
    """
    for path in sorted(folder.iterdir()):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
    for staged in sorted(folder.glob(f".*{_STATEMENT}{_STAGED}")):
        if _introduced(staged) & _held(folder):
            show_statement(staged)
        else:
            staged.unlink()


def _introduced(staged: Path) -> set[str]:
    try:
        return {read_json(staged)["new"]["ed25519"]}
    except (UserError, KeyError, TypeError):
        return set()


def _held(folder: Path) -> set[str]:
    """Return the Ed25519 public keys of a folder's private keys, as hex. Skip those that need a passphrase."""
    held = set()
    for path in folder.glob("*.pem"):
        with contextlib.suppress(UserError):
            held |= {key.raw.hex() for key in known_public(read_private_file(path), where=str(path)) or ()}
    return held
