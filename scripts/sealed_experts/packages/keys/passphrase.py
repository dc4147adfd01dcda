"""The passphrase of a private key, from the environment or the terminal."""

import getpass
import os
import sys
from pathlib import Path

from sealed_experts.errors import UserError

VARIABLE = "SEALED_EXPERTS_PASSPHRASE"
_LONGEST = 1024


def read_passphrase(path: Path) -> bytes:
    """Return the passphrase that opens a key file.

    Raises:
        UserError: the environment has none, and there is no terminal.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return _encoded(given)
    _require_terminal(f"the private key {path} has a passphrase")
    return _encoded(_asked(f"passphrase of {path}: "))


def new_passphrase() -> bytes:
    """Return a passphrase for a new key file. A terminal asks for it twice.

    Raises:
        UserError: none is given, there is no terminal, or the two differ.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return _encoded(given)
    _require_terminal("the new key needs a passphrase")
    first = _asked("passphrase of the new key: ")
    if first != _asked("the same again: "):
        raise UserError("the two passphrases differ: run the command again")
    return _encoded(first)


def wanted() -> bool:
    """Say whether the environment gives a passphrase. If so, new keys get it."""
    return bool(os.environ.get(VARIABLE))


def require_variable(path: Path) -> None:
    """Refuse if the environment gives no passphrase: a job cannot ask for the passphrase of this key.

    Raises:
        UserError: the environment gives no passphrase.
    """
    if not wanted():
        raise UserError(f"the private key {path} has a passphrase, and jobs cannot ask for it: set {VARIABLE}")


def _asked(prompt: str) -> str:
    try:
        return getpass.getpass(prompt)
    except EOFError as error:
        raise UserError(f"no passphrase was given: run the command again, or set {VARIABLE}") from error


def _require_terminal(why: str) -> None:
    # Without this check, a job of the pipeline would wait for ever.
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(f"{why}: set {VARIABLE}, or run the command in a terminal, which asks for it")


def _encoded(text: str) -> bytes:
    if not text or len(text) > _LONGEST:
        raise UserError(f"a passphrase has 1 to {_LONGEST} characters")
    return os.fsencode(text)
