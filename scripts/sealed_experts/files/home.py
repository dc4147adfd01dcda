"""The user's own folder for keys, trust and the release log. It is outside the results and the repository."""

import os
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import make_folder

DEFAULT_HOME = (".config", "sealed-experts")  # in the home folder of the system's user


def home_folder() -> Path:
    """Return ${SEALED_EXPERTS_HOME}, by default ~/.config/sealed-experts. It may not exist yet."""
    chosen = os.environ.get("SEALED_EXPERTS_HOME")
    try:
        return Path(chosen).expanduser() if chosen else Path.home().joinpath(*DEFAULT_HOME)
    except RuntimeError as error:
        raise UserError(f"no home folder is known ({error}): set SEALED_EXPERTS_HOME to a folder of yours") from error


def private_folder(folder: Path, *, home: Path | None = None) -> Path:
    """Return `folder`, which is in `home` or is `home` itself; missing folders are made with mode 0700.

    Args:
        home: by default `home_folder()`.

    Raises:
        UserError: a folder cannot be made, or other users can write to it.
    """
    home = home_folder() if home is None else home
    upward = [folder, *folder.parents]
    for each in reversed(upward[: upward.index(home) + 1]):
        try:
            make_folder(each, mode=0o700)
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
    """Refuse a file or folder that other users could change.

    Raises:
        UserError: its mode lets others write, or it belongs neither to this user nor to root.
    """
    mode = status.st_mode
    if mode & 0o022:
        raise UserError(f"other users can write to {path} (mode {mode & 0o7777:04o}): chmod go-w it")
    if status.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"{path} belongs to another user (uid {status.st_uid}), who can change it: chown it to yourself, or set"
            " SEALED_EXPERTS_HOME to a folder of your own"
        )


def expanded(path: str, *, variable: str) -> Path:
    """Return the path in the environment variable `variable`, with `~` replaced.

    Raises:
        UserError: the path begins with the `~` of a user who is not known here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{variable}={path}: no home folder of that user is known: write the whole path") from error
