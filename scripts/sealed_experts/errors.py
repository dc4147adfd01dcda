"""The one exception for mistakes a person can mend, and how a command reports it."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key or row), and what would be right. Commands print it without a
    traceback; every other exception is a defect of this program and keeps its traceback.
    """

    exit_code = 1


def reports_user_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make `main` print a UserError as one plain message on standard error and return its exit code."""

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code

    return guarded
