"""Failure points: every write, sync, rename and removal under a folder, before and after it happens.

The operations of this process are replaced by ones that report to a visitor; nothing in the program knows of it. So a
place that writes in a new way is a failure point without being declared one.
"""

import builtins
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEFORE, AFTER = "before", "after"
_RANDOM = re.compile(r"\.[0-9a-f]{16}\.(tmp|new)$")
_FINGERPRINT = re.compile(r"[0-9a-f]{16,64}")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of them.

    Attributes:
        kind: create, write, sync, rename, link, remove, folder or truncate.
        path: what it acts on, relative to the watched folder.
        target: the new name of a rename or a link.
        data: what is written, and `offset` where; None appends.
    """

    kind: str
    path: str
    target: str | None = None
    data: bytes = b""
    offset: int | None = None

    @property
    def name(self) -> str:
        """The same for every run: without random parts, fingerprints and step numbers."""
        return f"{self.kind} {_plain(self.target or self.path)}"

    def is_in(self, folder: str) -> bool:
        """Say whether it happens in a folder, or to it."""
        return self.path == folder or self.path.startswith(folder + os.sep)


def _plain(path: str) -> str:
    return _NUMBER.sub("#", _FINGERPRINT.sub("*", _RANDOM.sub(r".\1", path)))


Visitor = Callable[[str, Operation], None]


class Points:
    """While installed in a process, calls `visit(when, operation)` before and after each operation under `root`."""

    def __init__(self, root: Path, visit: Visitor) -> None:
        self._root, self._visit = os.path.realpath(root), visit
        self._real = {name: getattr(os, name) for name in _SYSTEM}
        self._open, self._open_descriptor = io.open, os.open

    def install(self) -> None:
        """Replace the operations for the rest of this process's life: it is a fork that ends soon."""
        for name in _SYSTEM:
            setattr(os, name, getattr(self, f"_{name}"))
        os.open = self._descriptor
        os.remove = self._unlink  # the same function under another name
        builtins.open = io.open = self._open_file  # type: ignore[assignment]

    def relative(self, path: Any) -> str | None:
        """Return a path, or the path of a descriptor, relative to the watched folder; None outside of it."""
        try:
            full = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fspath(path))
        except OSError:
            return None
        head, tail = os.path.split(full)
        full = os.path.join(os.path.realpath(head), tail)
        inside = full == self._root or full.startswith(self._root + os.sep)
        return os.path.relpath(full, self._root) if inside else None

    def _around(self, operation: Operation | None, work: Callable[[], Any]) -> Any:
        if operation is None:
            return work()
        self._visit(BEFORE, operation)
        result = work()
        self._visit(AFTER, operation)
        return result

    def _of(self, kind: str, path: Any, *, target: Any = None, **more: Any) -> Operation | None:
        place = self.relative(path)
        if place is None:
            return None
        return Operation(kind=kind, path=place, target=None if target is None else self.relative(target), **more)

    def _descriptor(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        new = flags & os.O_CREAT and "dir_fd" not in named and not os.path.lexists(path)
        return self._around(
            self._of("create", path) if new else None, lambda: self._open_descriptor(path, flags, *rest, **named)
        )

    def _write(self, descriptor: int, data: Any) -> int:
        operation = self._of("write", descriptor, data=bytes(data))
        return self._around(operation, lambda: self._real["write"](descriptor, data))

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        operation = self._of("write", descriptor, data=bytes(data), offset=offset)
        return self._around(operation, lambda: self._real["pwrite"](descriptor, data, offset))

    def _fsync(self, descriptor: int) -> None:
        self._around(self._of("sync", descriptor), lambda: self._real["fsync"](descriptor))

    def _ftruncate(self, descriptor: int, length: int) -> None:
        self._around(
            self._of("truncate", descriptor, offset=length), lambda: self._real["ftruncate"](descriptor, length)
        )

    def _replace(self, source: Any, target: Any, **named: Any) -> None:
        self._around(self._of("rename", source, target=target), lambda: self._real["replace"](source, target, **named))

    def _rename(self, source: Any, target: Any, **named: Any) -> None:
        self._around(self._of("rename", source, target=target), lambda: self._real["rename"](source, target, **named))

    def _link(self, source: Any, target: Any, **named: Any) -> None:
        self._around(self._of("link", source, target=target), lambda: self._real["link"](source, target, **named))

    def _unlink(self, path: Any, **named: Any) -> None:
        operation = None if named.get("dir_fd") is not None else self._of("remove", path)
        self._around(operation, lambda: self._real["unlink"](path, **named))

    def _mkdir(self, path: Any, *rest: Any, **named: Any) -> None:
        operation = None if os.path.isdir(path) else self._of("folder", path)
        self._around(operation, lambda: self._real["mkdir"](path, *rest, **named))

    def _open_file(self, path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        place = self.relative(path) if set(mode) & set("wax+") else None
        if place is None:
            return self._open(path, mode, *rest, **named)
        operation = None
        if not isinstance(path, int):  # a descriptor's file was made by `os.open`
            if not os.path.lexists(path):
                operation = Operation(kind="create", path=place)
            elif "w" in mode:
                operation = Operation(kind="truncate", path=place, offset=0)
        return _Watched(self._around(operation, lambda: self._open(path, mode, *rest, **named)), place, self)


_SYSTEM = ("write", "pwrite", "fsync", "ftruncate", "replace", "rename", "link", "unlink", "mkdir")


class _Watched:
    """A file opened for writing whose writes are reported; in all else it is that file."""

    def __init__(self, stream: Any, place: str, points: Points) -> None:
        self._stream, self._place, self._points = stream, place, points

    def write(self, data: Any) -> int:
        content = data.encode() if isinstance(data, str) else bytes(data)
        operation = Operation(kind="write", path=self._place, data=content)
        return self._points._around(operation, lambda: self._stream.write(data))

    def __enter__(self) -> "_Watched":
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stream.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
