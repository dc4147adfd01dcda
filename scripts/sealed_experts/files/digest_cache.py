"""Digests of the user's files, remembered for as long as a file's status stays the same.

A plan of the workflow compares contents, whatever the files' times say. With this cache it reads each file once. A
wrong digest would only make a plan wrong, and the job finds that: a job reads its files without the cache.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.canonical import strict_json
from sealed_experts.files.regular_file import open_regular, read_regular

LOCATION = Path(".snakemake/digests.json")  # beside Snakemake's own records of this folder
VERSION = 1
MOST_ENTRIES = 10_000  # about 1.5 MB; the oldest entries go first
LARGEST_CACHE = 16_000_000  # bytes; a longer file is not ours
ANNOUNCED_BYTES = 500_000_000  # reading more can take seconds, so it is announced

# A file that changes twice within one tick of the file system's clock can keep its status. So a status is only
# remembered if the last change was earlier than this when reading began. Whole seconds are a sign of a coarse clock.
TICK_NS, COARSE_TICK_NS = 50_000_000, 2_000_000_000
SECOND_NS = 1_000_000_000

_DIGEST = re.compile("[0-9a-f]{64}")


def _announce(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class DigestCache:
    """SHA-256 digests of files, by device, inode, size, and the times of the last change (content, status) in ns.

    Nobody can set the time of a status change, so a file with an older time, or with the size and time that it had
    before, is read again. Several processes may use one cache: its file is replaced as a whole. If two write at once,
    one's new entries are lost, and these files are read once more.
    """

    def __init__(self, path: Path | None = LOCATION, *, announce: Callable[[str], None] = _announce) -> None:
        """Args: path: the cache's file; None remembers only for the lifetime of this object."""
        self._path, self._announce = path, announce
        self._known = self._read()

    def digests(self, paths: Iterable[str]) -> dict[str, str | None]:
        """Return {path: SHA-256}, reading only files whose status is new; None for a file that cannot be read."""
        status = {path: _status(path) for path in paths}
        unread = {path: of for path, of in status.items() if of is not None and _identity(of) not in self._known}
        size = sum(of.st_size for of in unread.values())
        if size > ANNOUNCED_BYTES:
            self._announce(
                f"reading {size / 1e9:.1f} GB of new or changed files to compare their contents (the first is"
                f" {next(iter(unread))!r}); unchanged files are not read again"
            )
        found = {path: self._known.get(_identity(of)) if of else None for path, of in status.items()}
        fresh = {}
        for path in unread:
            digest, identity = _digest(path)
            found[path] = digest
            if digest is not None and identity is not None:
                fresh[identity] = digest
        if fresh:
            self._remember(fresh)
        return found

    def _read(self) -> dict[str, str]:
        """Return the entries of the cache's file; none if it is missing or is not as this class writes it."""
        if self._path is None:
            return {}
        try:
            content = strict_json(read_regular(self._path, what="the cache", limit=LARGEST_CACHE))
            if content["version"] != VERSION:
                return {}
            entries = content["digests"]
            return entries if all(map(_DIGEST.fullmatch, entries.values())) else {}
        except (UserError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _remember(self, fresh: dict[str, str]) -> None:
        self._known |= fresh
        if self._path is None:
            return
        entries = self._read() | fresh  # what other processes have added
        kept = dict(list(entries.items())[-MOST_ENTRIES:])
        content = json.dumps({"version": VERSION, "digests": kept}).encode()
        with contextlib.suppress(UserError, OSError):  # without the cache, everything is only slower
            write_bytes(self._path, content, mode=0o600)


def forget(path: Path = LOCATION) -> None:
    """Delete the cache's file, if there is one."""
    with contextlib.suppress(OSError):  # it stays, and the next job that finds a wrong entry says so again
        path.unlink()


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _identity(status: os.stat_result) -> str:
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, parts))


def _digest(path: str) -> tuple[str | None, str | None]:
    """Return a file's digest, and the identity to remember it by; None if it is still changing, or just did."""
    try:
        with open_regular(path) as (stream, before):
            began = time.time_ns()
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            after = os.fstat(stream.fileno())
    except OSError:
        return None, None
    tick = TICK_NS if before.st_ctime_ns % SECOND_NS else COARSE_TICK_NS
    settled = _identity(before) == _identity(after) and before.st_ctime_ns + tick < began
    return digest, _identity(before) if settled else None
