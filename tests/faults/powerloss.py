"""What a disk may hold after a loss of power: recorded operations, replayed without what was not synced.

The model is POSIX's, stricter than any one file system: a file's content is safe after `fsync` of the file, its name
after `fsync` of its folder. Killing a process never shows this, because the system still writes what it was given.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.points import AFTER, Operation

# What is safe alone; or all names too, with the content that is safe: some file systems write names first.
# SHOWN is what the system shows until then: what somebody may have seen.
STRICT, NAMES_FIRST, SHOWN = "strict", "names first", "shown"


class Recorder:
    """A visitor that writes each operation that was done to a file outside of the watched folder."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write = os.write

    def __call__(self, when: str, operation: Operation) -> None:
        if when == AFTER:
            content = pickle.dumps(operation)
            self._write(self._descriptor, len(content).to_bytes(8, "big") + content)


def recorded(path: Path) -> list[Operation]:
    """Return the operations of a record."""
    data, operations, place = path.read_bytes(), [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "big")
        operations.append(pickle.loads(data[place + 8 : place + 8 + size]))
        place += 8 + size
    return operations


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.content, self.safe = content, content


class Disk:
    """Files and names as the system shows them, and as they are safe."""

    def __init__(self, start: Path) -> None:
        """Begin with a folder that is safe as it is."""
        self._files = {
            str(path.relative_to(start)): _File(path.read_bytes()) for path in start.rglob("*") if path.is_file()
        }
        self._folders = {str(path.relative_to(start)) for path in start.rglob("*") if path.is_dir()} | {"."}
        self._safe_files, self._safe_folders = dict(self._files), set(self._folders)

    def apply(self, operation: Operation) -> None:
        """Do an operation."""
        path, target = operation.path, operation.target
        if operation.kind == "create":
            self._files[path] = _File()
        elif operation.kind == "truncate":
            self._files[path].content = self._files[path].content[: operation.offset]
        elif operation.kind == "write":
            file = self._files[path]
            at = len(file.content) if operation.offset is None else operation.offset
            file.content = (
                file.content[:at].ljust(at, b"\0") + operation.data + file.content[at + len(operation.data) :]
            )
        elif operation.kind == "sync":
            self._sync(path)
        elif operation.kind in ("rename", "link"):
            assert target is not None, operation
            self._files[target] = self._files[path]
            if operation.kind == "rename":
                del self._files[path]
        elif operation.kind == "remove":
            del self._files[path]
        elif operation.kind == "folder":
            self._folders.add(path)
        else:
            raise ValueError(f"unknown operation {operation}")

    def _sync(self, path: str) -> None:
        if path in self._files:
            self._files[path].safe = self._files[path].content
            return
        inside: Callable[[str], bool] = lambda name: os.path.dirname(name) == ("" if path == "." else path)  # noqa: E731
        for name in [name for name in self._safe_files if inside(name)]:
            del self._safe_files[name]
        self._safe_files.update({name: file for name, file in self._files.items() if inside(name)})
        self._safe_folders |= {name for name in self._folders if inside(name)}

    def write(self, folder: Path, *, model: str) -> None:
        """Write what is left after a loss of power into an empty folder."""
        files = self._safe_files if model == STRICT else self._files
        folders = self._safe_folders if model == STRICT else self._folders
        for name in sorted(folders):
            if all(parent in folders for parent in _parents(name)):
                (folder / name).mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            if os.path.dirname(name) in ("", *folders) and (folder / name).parent.is_dir():
                (folder / name).write_bytes(file.content if model == SHOWN else file.safe)
                (folder / name).chmod(0o600)  # some are secret, and are refused with another mode


def _parents(name: str) -> list[str]:
    parts = name.split(os.sep)
    return [os.sep.join(parts[:count]) for count in range(1, len(parts))]


def after_loss(start: Path, operations: list[Operation], *, count: int, model: str, folder: Path) -> None:
    """Make `folder` what is left of `start` when power was lost after the first `count` operations."""
    disk = Disk(start)
    for operation in operations[:count]:
        disk.apply(operation)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    disk.write(folder, model=model)
