"""The journal of a stage's noisy steps. Each step is written to disk here before its result is used.

It is a text file of JSON lines: a header with the run's fingerprint, the id of its noise key and its first step, then
one line for each step, in order. A repeated step counts once: after a crash the same key gives the same bits, so the
repetition costs nothing. A crash may repeat a step, but the count never misses one.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes, write_error
from sealed_experts.files.canonical import canonical_json, strict_json

_FORMAT = "sealed-experts/journal/v1"
_HEADER_FIELDS = {"format", "fingerprint", "key_id", "first_step"}


class Journal:
    """An open journal. The caller holds the lock of its folder, so nobody else appends to it."""

    def __init__(self, *, path: Path, first_step: int, count: int) -> None:
        """Use `Journal.open` instead."""
        self._path = path
        self._first = first_step
        self._count = count
        try:
            self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise write_error(path, error) from error

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, fingerprint: str, key_id: str, first_step: int = 1) -> "Journal":
        """Open the journal at `path`, or start one (mode 0600).

        A partial last line counts as a step and is completed. `first_step` is for a new journal; an existing one
        keeps its own.

        Raises:
            UserError: the journal belongs to another fingerprint or key, or a line in it is not from this program.
        """
        target = Path(path)
        if not target.exists():
            header = {"format": _FORMAT, "fingerprint": fingerprint, "key_id": key_id, "first_step": first_step}
            write_bytes(target, canonical_json(header).encode() + b"\n", mode=0o600)
            return cls(path=target, first_step=first_step, count=0)
        lines = target.read_bytes().split(b"\n")
        first_step = _read_header(target, lines[0], whole=len(lines) > 1, fingerprint=fingerprint, key_id=key_id)
        count = _count_steps(target, lines[1:], first_step)
        if lines[-1]:
            steps = range(first_step, first_step + count)
            content = b"\n".join([lines[0], *map(_line, steps)])
            write_bytes(target, content + b"\n", mode=0o600)
        return cls(path=target, first_step=first_step, count=count)

    @property
    def steps(self) -> int:
        """Number of distinct steps that were started with this key."""
        return self._count

    @property
    def next_step(self) -> int:
        """The first step that is not in the journal."""
        return self._first + self._count

    def check_reaches(self, step: int) -> None:
        """Check that the journal holds every step up to `step`.

        Raises:
            UserError: it holds fewer.
        """
        check_reaches(self._path, last=self.next_step - 1, step=step)

    def record(self, step: int) -> None:
        """Make sure that `step` is on disk. Call this before the step's noised result is used for anything.

        A step that is in the journal already is not written again.

        Raises:
            ValueError: an earlier step is missing, so something was released without a record.
            UserError: the disk is full, or the journal was removed or moved.
        """
        if self._descriptor is None:
            raise ValueError(f"{self._path} is closed")
        if self._first <= step < self.next_step:
            return
        if step != self.next_step:
            raise ValueError(f"{self._path} goes up to step {self.next_step - 1}: step {step} cannot be recorded next")
        self._check_in_place(self._descriptor)
        line = _line(step) + b"\n"
        try:
            written = os.write(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            self.close()  # the next `open` reads what is on disk
            raise write_error(self._path, error) from error
        if written != len(line):
            self.close()
            raise UserError(f"no space left while writing {self._path}: free some and run again")
        self._count += 1

    def _check_in_place(self, descriptor: int) -> None:
        """Refuse to write if the file was removed or moved: writing would succeed, but the lines would be lost."""
        try:
            in_place = os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            in_place = False
        if not in_place:
            self.close()
            raise UserError(
                f"{self._path} was removed while this run was using it: put it back, with the checkpoints and the key "
                "next to it, and run the same command again; if they are lost, that command starts this stage again"
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The content of a journal.

    Attributes:
        key_id: id of the key that gave its steps their noise.
        first_step: the step of its first line.
        steps: number of its steps; a partial last line counts.
    """

    key_id: str
    first_step: int
    steps: int

    @property
    def last_step(self) -> int:
        """The last step in the journal; if it holds none, the step before its first."""
        return self.first_step + self.steps - 1


def recorded(path: str | os.PathLike[str], *, fingerprint: str, key_id: str | None = None) -> Recorded:
    """Return the content of the journal of the run `fingerprint`, without changing it.

    Args:
        key_id: id of the run's key, if known.

    Raises:
        UserError: the journal belongs to another run or key, or this program did not write it.
    """
    target = Path(path)
    lines = target.read_bytes().split(b"\n")
    if key_id is None:
        header = _parsed(lines[0])
        key_id = str(header.get("key_id")) if isinstance(header, dict) else ""
    first_step = _read_header(target, lines[0], whole=len(lines) > 1, fingerprint=fingerprint, key_id=key_id)
    return Recorded(key_id=key_id, first_step=first_step, steps=_count_steps(target, lines[1:], first_step))


def check_reaches(path: Path, *, last: int, step: int) -> None:
    """Check that a journal whose last step is `last` covers a checkpoint of `step`.

    Raises:
        UserError: it does not, so the stated ε would be too small.
    """
    if last < step:
        raise UserError(
            f"the privacy journal of this run goes up to step {last}, but its checkpoint is of step {step}: restore "
            f"{path}, or delete its folder to start again under a new key"
        )


def _line(step: int) -> bytes:
    return b'{"step":%d}' % step


def _read_header(path: Path, line: bytes, *, whole: bool, fingerprint: str, key_id: str) -> int:
    header = _parsed(line)
    sound = whole and isinstance(header, dict) and set(header) == _HEADER_FIELDS and header["format"] == _FORMAT
    # The file was created with its complete header, so a crash cannot leave a part of one.
    if not sound or type(header["first_step"]) is not int:
        raise UserError(
            f"{path}, line 1 is not the header of a privacy journal: the file was damaged or replaced; restore it, or "
            "delete the checkpoints next to it to train again with a new key"
        )
    for name, expected in (("fingerprint", fingerprint), ("key_id", key_id)):
        if header[name] != expected:
            raise UserError(
                f"{path} belongs to another run: its {name} is {header[name]}, this run's is {expected}; "
                "move it back to the checkpoints and the key that it was written with"
            )
    return int(header["first_step"])


def _count_steps(path: Path, lines: list[bytes], first_step: int) -> int:
    """Return how many steps the lines after the header hold. The last item has no newline after it."""
    *complete, torn = lines
    for index, line in enumerate(complete):
        if line != _line(first_step + index):
            raise UserError(
                f"{path}, line {index + 2} should be {_line(first_step + index).decode()} but is "
                f"{line[:60].decode(errors='replace')!r}: the file was altered, and ε cannot be stated from it; "
                "restore it, or delete the checkpoints next to it to train again with a new key"
            )
    # A partial line (a part of the text, or zeros that some file systems leave) means that its step had begun.
    return len(complete) + bool(torn)


def _parsed(line: bytes) -> Any:
    try:
        return strict_json(line)
    except ValueError:
        return None
