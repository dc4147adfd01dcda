"""Read private keys of any kind: publishers' keys, recipients' keys and keys for model signing."""

import os
from collections.abc import Iterator
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.home import DEFAULT_HOME, refuse_foreign, refuse_shared
from sealed_experts.files.regular_file import open_regular

LARGEST_FILE = 16_384
_CORRECT = "correct its path"
_OUTSIDE = (
    "keep it outside (SEALED_EXPERTS_HOME names the folder of keys, SEALED_EXPERTS_KEY and SEALED_EXPERTS_IDENTITY the "
    "files in use)"
)
_MOST_LINKS = 40  # Linux follows as many


def read_private_file(path: Path, *, remedy: str = _CORRECT) -> bytes:
    """Return the content of a private file that only this user can read.

    Args:
        path: the file.
        remedy: what to do if it does not exist.

    Raises:
        UserError: the file is missing, not regular or too large; it is in the folder of a project or of results; or
            other users can read it, replace it, or replace a symlink to it.
    """
    refuse_place(path, remedy=remedy)
    try:
        with open_regular(path) as (stream, status):
            if status.st_mode & 0o077:
                mode = f"{status.st_mode & 0o777:04o}"
                raise UserError(f"other users can use the private key {path} (mode {mode}): chmod 600 it")
            refuse_foreign(path, status)
            content = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise UserError(_missing(path, remedy)) from error
    except OSError as error:
        raise UserError(f"cannot read the private key {path}: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE} bytes, so it is not a private key: give another file")
    return content


def refuse_place(path: Path, *, remedy: str = _CORRECT) -> None:
    """Refuse a path for a private key if others could replace it, or if it would be copied with a project.

    Args:
        path: the private key.
        remedy: what to do if its folder does not exist.

    Raises:
        UserError: the path is refused, or a folder on the way is missing or cannot be read.
    """
    try:
        refuse_project(path)
        os.stat(path.parent)  # if this folder is missing, the message says that the key is missing
        for folder in _folders(path):
            refuse_shared(folder)
    except FileNotFoundError as error:
        raise UserError(_missing(path, remedy)) from error
    except OSError as error:
        raise UserError(f"cannot read the private key {path}: {error.strerror}") from error


def refuse_project(path: Path) -> None:
    """Refuse a private key in a place where it could be committed, copied or published with a run's results.

    Raises:
        UserError: the path, or the target of the link, is in this program's own folder, in the folder of a workflow,
            or in a folder of results.
    """
    program = Path(__file__).resolve().parents[4]
    for folder in {*Path(os.path.abspath(path)).parents, *Path(os.path.realpath(path)).parents}:
        if folder.name == "results":
            raise UserError(f"{path} is in {folder}, where a private key would be published with it: {_OUTSIDE}")
        if folder == program or (_is_workflow(folder) and not _is_own_place(path, folder)):
            raise UserError(
                f"{path} is in the project {folder}, where a private key would be copied with its files: {_OUTSIDE}"
            )


def _is_workflow(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in ("Snakefile", "workflow/Snakefile"))


def _is_own_place(path: Path, folder: Path) -> bool:
    """Say whether `folder` is the user's home (it may hold a Snakefile) and `path` is in its default folder of keys."""
    home = os.path.realpath(os.path.expanduser("~"))
    default = Path(home, *DEFAULT_HOME)
    return str(folder) == home and Path(os.path.realpath(path)).is_relative_to(default)


def _missing(path: Path, remedy: str) -> str:
    return f"the private key {path} does not exist: {remedy}"


def _folders(path: Path) -> Iterator[Path]:
    """Yield the folder of a file and, if it is a symlink, the folders of all files on the way to its target."""
    yield path.parent
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
        yield path.parent
    yield Path(os.path.realpath(path)).parent
