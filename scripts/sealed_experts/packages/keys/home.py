"""Where a person's keys live: outside the results and the repository."""

import os
import re
from pathlib import Path

from sealed_experts.errors import UserError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_DEFAULT = (".config", "sealed-experts")
_OUTSIDE = (
    "keep it outside (SEALED_EXPERTS_HOME names the folder of keys, SEALED_EXPERTS_KEY and SEALED_EXPERTS_IDENTITY the "
    "files in use)"
)


def home_folder() -> Path:
    """Return ${SEALED_EXPERTS_HOME}, by default ~/.config/sealed-experts. It may not exist yet."""
    chosen = os.environ.get("SEALED_EXPERTS_HOME")
    try:
        return Path(chosen).expanduser() if chosen else Path.home().joinpath(*_DEFAULT)
    except RuntimeError as error:
        raise UserError(f"no home folder is known ({error}): set SEALED_EXPERTS_HOME to a folder of yours") from error


def private_folder(folder: Path) -> Path:
    """Return `folder`, which lies in the home folder; both are made with mode 0700 where they are missing.

    Raises:
        UserError: one cannot be made, or other users can write to it.
    """
    for each in (home_folder(), folder):
        try:
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {each} ({error.strerror}): set SEALED_EXPERTS_HOME to a folder of yours"
            ) from error
        refuse_shared(each)
    return folder


def refuse_shared(folder: Path) -> None:
    """Refuse a folder in which other users could replace a file.

    Raises:
        UserError: the folder is missing, or other users can write to it.
    """
    try:
        status = folder.stat()
    except OSError as error:
        raise UserError(f"cannot read the folder {folder} ({error.strerror})") from error
    refuse_foreign(folder, status)


def refuse_foreign(path: Path, status: os.stat_result) -> None:
    """Refuse a file or folder that other users could change: by its mode, or because it is theirs.

    Raises:
        UserError: its mode lets others write, or it belongs neither to this user nor to root.
    """
    mode = status.st_mode
    if mode & 0o022:
        raise UserError(f"other users can write to {path} (mode {mode & 0o7777:04o}): chmod go-w it")
    if status.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"{path} belongs to another user (uid {status.st_uid}), who can change it: chown it to yourself, or set"
            " SEALED_EXPERTS_HOME to a folder of yours"
        )


def checked_name(name: str) -> str:
    """Return `name` if it can name a key.

    Raises:
        UserError: it cannot.
    """
    if not NAME.fullmatch(name) or _FINGERPRINT.fullmatch(name):  # a name must not be taken for another key's
        raise UserError(
            f"{name!r} cannot name a key: use up to 64 of a-z, 0-9, '.', '_', '-', not starting with a sign, and no"
            " fingerprint"
        )
    return name


def refuse_project(path: Path) -> None:
    """Refuse a private key where it could be committed, copied or published with a run's results.

    Raises:
        UserError: the path, or what it leads to, lies in this program's own folder, in the folder of a workflow, or in
            a folder of results.
    """
    program = Path(__file__).resolve().parents[4]
    for folder in {*Path(os.path.abspath(path)).parents, *Path(os.path.realpath(path)).parents}:
        if folder.name == "results":
            raise UserError(f"{path} lies in {folder}, where a private key would be published with it: {_OUTSIDE}")
        if folder == program or (_is_workflow(folder) and not _is_own_place(path, folder)):
            raise UserError(
                f"{path} lies in the project {folder}, where a private key would travel with its files: {_OUTSIDE}"
            )


def expanded(path: str, *, variable: str) -> Path:
    """Return the path that an environment variable names, with `~` replaced.

    Raises:
        UserError: it begins with the `~` of a user who is not known here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{variable}={path}: no home folder of that user is known: write the whole path") from error


def _is_workflow(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in ("Snakefile", "workflow/Snakefile"))


def _is_own_place(path: Path, folder: Path) -> bool:
    """Tell whether `path` is in the default folder of keys of a user in whose home folder a Snakefile lies about."""
    home = os.path.realpath(os.path.expanduser("~"))
    default = Path(home, *_DEFAULT)
    return str(folder) == home and Path(os.path.realpath(path)).is_relative_to(default)
