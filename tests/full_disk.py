"""A disk that becomes full when the n-th file is opened for writing: a small tmpfs, filled to its last page.

If mounting is not allowed, this and all later openings raise ENOSPC instead; `how` says which method is in use.
"""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_SIZE = "2m"
_active: "list[FullDisk]" = []
_hooked = False


class FullDisk:
    """A folder on a separate disk. `opened` counts the files opened for writing since `full_from`."""

    def __init__(self, folder: Path) -> None:
        global _hooked
        folder.mkdir(parents=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
        )
        self.how = "tmpfs" if mounted.returncode == 0 else "raised"
        self.folder, self.opened = folder, 0
        self._number: int | None = None
        self._filler = folder / ".filler"
        if not _hooked:
            sys.addaudithook(_note)
            _hooked = True

    @contextlib.contextmanager
    def full_from(self, number: int) -> Iterator[None]:
        """Fill the disk when the block opens its `number`-th file for writing; free it when the block ends."""
        self._number, self.opened = number, 0
        _active.append(self)
        try:
            yield
        finally:
            _active.remove(self)
            self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount the disk."""
        if self.how == "tmpfs":
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def note(self, path: Path) -> None:
        """Record that a file is being opened for writing."""
        if path == self._filler or self.folder not in path.parents:
            return
        self.opened += 1
        if self.opened < (self._number or 0):
            return
        if self.how != "tmpfs":
            raise OSError(errno.ENOSPC, "No space left on device")
        fill(self._filler)


def fill(filler: Path) -> None:
    """Fill the disk that holds `filler` to its last page."""
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)


def _note(event: str, arguments: tuple) -> None:
    if event != "open" or not _active or not isinstance(arguments[0], str | os.PathLike):
        return
    if arguments[2] & (os.O_WRONLY | os.O_RDWR):
        for disk in list(_active):
            disk.note(Path(arguments[0]))
