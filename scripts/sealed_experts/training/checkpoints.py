"""Checkpoints of one run: one file each, written atomically and checked when read. Only the newest few are kept."""

import errno
import hashlib
import io
import os
import re
import secrets
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.files.atomic import atomic_writer, make_folder, write_bytes, write_error
from sealed_experts.files.canonical import canonical_json, write_json
from sealed_experts.files.digests import sha256_bytes

_NAME = re.compile(r"checkpoint_step_(\d+)\.pt")
# Version of the file format. Raise it when the content or its layout changes. A file without one has version 1.
VERSION = 1


class DamagedStateError(UserError):
    """A file is damaged, or this program did not write it."""


class CheckpointFolder:
    """The folder of one fingerprint: its checkpoints and its secret key."""

    def __init__(self, root: Path, *, fingerprint: str, keep: int) -> None:
        self.path = root / fingerprint
        self.fingerprint = fingerprint
        self._keep = keep
        try:
            make_folder(self.path)
            for unfinished in self.path.glob(".checkpoint_step_*.tmp"):  # left by a save that was killed
                unfinished.unlink(missing_ok=True)
            # Keep it open: otherwise a new folder could get the inode number of a removed one.
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise write_error(self.path, error) from error
        weakref.finalize(self, os.close, self._descriptor)

    def save(self, state: dict[str, Any], *, step: int) -> Path:
        """Write the state after `step` and remove all but the newest checkpoints.

        Raises:
            UserError: the disk is full, or the folder cannot be written or is gone; older checkpoints stay.
        """
        self.check_in_place()  # never recreate the folder: its key and its journal would be missing
        target = self.path / f"checkpoint_step_{step}.pt"
        save_state({**state, "fingerprint": self.fingerprint}, target, check=self.check_in_place)
        for _, old in self._found()[self._keep :]:
            if old != target:
                old.unlink(missing_ok=True)
        return target

    def check_in_place(self) -> None:
        """Check that this is still the folder that the run began with, so that its results may be kept.

        Raises:
            UserError: the folder was removed; another run, with another key, may have created it again.
        """
        text = f"{self.path} was removed while this run was using it"
        try:
            in_place = os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                raise write_error(self.path, error) from error
            raise UserError(
                f"{text}: put it back and run the same command again; without it, that command starts this stage again"
            ) from error
        if not in_place:
            raise UserError(
                f"{text}, and another one is in its place: this run ends here; the same command goes on with the new "
                "folder"
            )

    def load_newest(self) -> dict[str, Any] | None:
        """Return the newest state that loads; None if there is no checkpoint at all.

        A damaged checkpoint is reported on standard error and renamed, and the one before it is used.

        Raises:
            UserError: there are checkpoints, but none of them loads; or one is not damaged, but cannot be read.
        """
        found = self._found()
        refused: list[Path] = []
        for step, path in found:
            try:
                state = self.load(step)
            except DamagedStateError as error:
                print(f"WARNING: checkpoint of step {step} is not usable: {error}", file=sys.stderr, flush=True)
                refused.append(path)
                continue
            for other in refused:  # otherwise pruning would treat them as the newest
                other.rename(other.with_suffix(".unusable"))
            return state
        if found:
            raise UserError(
                f"none of the {len(found)} checkpoints in {self.path} can be used (see the warnings above): "
                "restore one of them, or delete that folder to start this stage again"
            )
        return None

    def load(self, step: int) -> dict[str, Any]:
        """Return the state after `step`.

        Raises:
            DamagedStateError: the checkpoint does not load, or belongs to another run.
            UserError: the checkpoint cannot be read.
        """
        path = self.path / f"checkpoint_step_{step}.pt"
        state = load_state(path)
        if state.get("fingerprint") != self.fingerprint:
            raise DamagedStateError(f"{path} belongs to another run")
        return state

    def secret_key(self) -> bytes:
        """Return this run's 32-byte key. It is drawn from the operating system on first use and kept with mode 0600.

        Raises:
            UserError: the key is gone although the run has begun, or other users can read its file.
        """
        path = self.path / "key"
        if not path.exists():
            if self.described or self.journal.exists() or self._found():
                raise UserError(
                    f"{path} is missing, but this run has begun with it: restore the key, or delete {self.path} to "
                    "start this stage again with a new one"
                )
            write_bytes(path, secrets.token_bytes(32), mode=0o600)
        if os.stat(path).st_mode & 0o077:
            raise UserError(f"{path} can be read by other users: chmod 600 it (it undoes the privacy of this run)")
        key = path.read_bytes()
        if len(key) != 32:
            raise UserError(f"{path} holds {len(key)} bytes instead of 32: restore it, or delete {self.path}")
        return key

    @property
    def journal(self) -> Path:
        """Path of the journal of a private run."""
        return self.path / "journal"

    @property
    def newest_step(self) -> int:
        """The step of the newest checkpoint, from its file name; -1 if there is none."""
        return max((step for step, _ in self._found()), default=-1)

    @property
    def described(self) -> bool:
        """Whether run.json exists. It is written last, when the run has everything that it needs to start."""
        return (self.path / "run.json").exists()

    def describe(
        self, *, subject: dict[str, Any], environment: dict[str, Any], continues: dict[str, Any] | None = None
    ) -> None:
        """Write run.json, which says what this run is. A run of another subject or environment has another key."""
        if self.described:
            return
        run = {"subject": subject, "environment": environment}
        write_json(self.path / "run.json", run if continues is None else {**run, "continues": continues})

    def _found(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self.path.iterdir())
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def save_state(state: dict[str, Any], path: Path, *, check: Callable[[], None] = lambda: None) -> None:
    """Write a nested state (mappings, lists, tensors, plain values) with a digest of its content, atomically.

    `check` is called just before the finished file gets its name. If it raises, `path` stays as it was.
    """
    # Write to memory first: torch's writer reports a full disk with an error that names neither file nor cause.
    content = io.BytesIO()
    state = {**state, "version": VERSION}
    torch.save({**state, "digest": state_digest(state)}, content)
    with atomic_writer(path, check=lambda _: check()) as stream:
        stream.write(content.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Read a state on the CPU without executing anything in it, and check its digest and its version.

    Raises:
        DamagedStateError: the file is truncated or altered, or this program did not write it.
        UserError: the file is missing, cannot be read, or has a later version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): make it a readable file") from error
    except Exception as error:  # torch.load raises many kinds for damaged files
        if is_out_of_memory(error):
            raise
        raise DamagedStateError(f"{path} is damaged or not a file of this program ({_reason(error)})") from error
    if not isinstance(state, dict) or "digest" not in state:
        raise DamagedStateError(f"{path} is not a file of this program: it carries no digest")
    claimed = state.pop("digest")
    try:
        sound = claimed == state_digest(state)
    except Exception as error:  # a file of another program, with values that our states never hold
        if is_out_of_memory(error):
            raise
        raise DamagedStateError(f"{path} is not a file of this program: {_reason(error)}") from error
    if not sound:
        raise DamagedStateError(f"{path} is damaged: its content does not match its digest")
    version = state.pop("version", 1)
    if version != VERSION:
        raise UserError(
            f"{path} is of version {version}, written by a later release of this program; this one reads up to "
            f"{VERSION}: use that release, or move the file away to start this stage again"
        )
    return state


def state_digest(state: Any) -> str:
    """Return a SHA-256 over a nested state: names, types, shapes and bytes. How it is stored does not matter."""
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.hexdigest()


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return a SHA-256 over sorted tensor names, dtypes, shapes and bytes."""
    return state_digest(dict(tensors))


def key_id(key: bytes) -> str:
    """Return a name for a key that does not reveal it."""
    return sha256_bytes(b"sealed-experts/key-id/v1" + key)[:32]


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous()
        yield f"tensor {flat.dtype} {list(flat.shape)}".encode()
        yield flat.view(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    elif isinstance(value, dict):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value, key=lambda item: (type(item).__name__, item)):
            yield f"{type(key).__name__} {key}".encode()
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield canonical_json(value).encode()
