"""The one exception for mistakes a person can mend, and how a command reports it."""

import functools
import sys
from collections.abc import Callable

_CONTINUED = "\n  "  # how a message of several lines goes on


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key or row), and what would be right. Commands print it without a
    traceback; every other exception is a defect of this program and keeps its traceback.
    """

    exit_code = 1


class UsageError(UserError):
    """Options of a command that do not go together."""

    exit_code = 2


def reports_user_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make `main` print a UserError as one plain message on standard error and return its exit code."""

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {shown(error)}", file=sys.stderr)
            return error.exit_code

    return guarded


def shown(error: UserError) -> str:
    """Return an error's message for a terminal: names of files in it can hold anything.

    A message of our own goes on in an indented line. No other line break stays: no name can look like a message.
    """
    return _CONTINUED.join(printable(line) for line in str(error).split(_CONTINUED))


def printable(text: str) -> str:
    """Return text in which nothing can steer a terminal or turn the reading direction."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"
