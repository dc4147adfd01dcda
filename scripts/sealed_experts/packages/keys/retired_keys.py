"""Retired keys: keys that a rotation replaced. Their paths, and how to revoke one without revoking its successor."""

import glob
import os
import shlex
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.packages.keys.own_entry import RETIRED
from sealed_experts.packages.keys.pem import read_public_keys
from sealed_experts.packages.keys.private_keys import VARIABLE, keys_folder
from sealed_experts.packages.keys.publisher import NAME, Publisher
from sealed_experts.packages.keys.trust import load_trust

_LONGEST = 46  # characters of the old name, so that the new name is short enough


def retired_path(path: Path, public: Publisher) -> Path:
    """Return the path to which the private file `path` moves when it is retired."""
    return path.with_name(f"{path.stem[:_LONGEST]}{RETIRED}{public.fingerprint[:8]}.pem")


def revoking_command(path: Path, *, reason: str = "it was replaced", fingerprint: str | None = None) -> str:
    """Return the shell command that revokes the key in a private file."""
    command = "sealed-experts keys revoke"
    if os.path.realpath(path.parent) == os.path.realpath(keys_folder()) and NAME.fullmatch(path.stem):
        command += f" --name {path.stem}"
    else:
        command = f"{VARIABLE}={shlex.quote(str(path))} {command}"
    if fingerprint is not None:
        command += f" --fingerprint {fingerprint}"
    return f"{command} --reason {shlex.quote(reason)} --output revocation.json"


def refuse_rotated_in(path: Path, public: Publisher, *, fingerprint: str | None) -> None:
    """Refuse to revoke a key that replaced another one, unless its fingerprint is given.

    A revocation cannot be undone, and after a rotation users usually want to revoke the old key.

    Args:
        path: the private file.
        public: its public half.
        fingerprint: the fingerprint that the user gave, if any.

    Raises:
        UserError: the key replaced one that is not revoked, and no fingerprint is given; or the fingerprint is that of
            another key.
    """
    if fingerprint is not None:
        if fingerprint != public.fingerprint:
            raise UserError(
                f"the key {path} has the fingerprint {public.fingerprint}, and --fingerprint gives {fingerprint}: "
                "`sealed-experts keys list` shows which key has which"
            )
        return
    former = _former(path, public)
    if former:
        commands = "; ".join(f"`{revoking_command(each)}`" for each in former)
        this = revoking_command(path, reason="it was lost", fingerprint=public.fingerprint)
        raise UserError(
            f"the key {path} replaced another one, and a revocation cannot be undone. To revoke the old key: "
            f"{commands}. To revoke the new key: `{this}`"
        )


def _former(path: Path, public: Publisher) -> list[Path]:
    """Return the files of the keys that `path` replaced and that are not revoked."""
    if RETIRED in path.stem:
        return []
    pattern = glob.escape(path.stem[:_LONGEST] + RETIRED) + "*.pem"
    beside = [each for each in sorted(path.parent.glob(pattern)) if each != retired_path(path, public)]
    return [each for each in beside if not _is_revoked(each)]


def _is_revoked(path: Path) -> bool:
    try:
        entry = load_trust().find(read_public_keys(path.with_suffix(".pub"))[0].fingerprint)
    except UserError:  # a damaged file counts as not revoked
        return False
    return entry is not None and entry.revoked is not None
