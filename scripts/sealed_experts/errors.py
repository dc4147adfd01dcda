"""The one exception for mistakes a person can mend, and how a command reports it."""

import contextlib
import errno
import functools
import sys
from collections.abc import Callable

from sealed_experts.text import printable

_CONTINUED = "\n  "  # how a message of several lines goes on
# How PyTorch and what it calls (the system, CUDA, cuBLAS, cuDNN, NCCL) say it inside a RuntimeError.
_EXIT_CTRL_C = 130  # what a shell says of a program that Ctrl-C ended
_NO_MEMORY = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key or row), and what would be right. Commands print it without a
    traceback; every other exception is a defect of this program and keeps its traceback.
    """

    exit_code = 1


class UsageError(UserError):
    """Options of a command that do not go together."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether the device, or the machine, had no memory left. Libraries report much of it as a RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        # By name and text: this module is read where torch is not.
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY))
    )


def reports_user_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make `main` print a UserError as one plain message on standard error and return its exit code.

    So it does where the machine has no memory left, or no space for the log, and after Ctrl-C: none is a defect.
    """

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt:
            said, code = "interrupted", _EXIT_CTRL_C
        except UserError as error:
            said, code = f"error: {shown(error)}", error.exit_code
        except (MemoryError, RuntimeError, OSError) as error:
            if is_out_of_memory(error):
                text = "out of memory: run the same command again with more (the next of several attempts asks for it)"
            elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = "no space left on a disk: free some and run the same command again"
            else:
                raise
            said, code = f"error: {text}", UserError.exit_code
        # The log may be on the full disk: then the exit code alone tells.
        with contextlib.suppress(OSError):
            print(said, file=sys.stderr)
        return code

    return guarded


def shown(error: UserError) -> str:
    """Return an error's message for a terminal: names of files in it can hold anything.

    A message of our own goes on in an indented line. No other line break stays: no name can look like a message.
    """
    return _CONTINUED.join(printable(line) for line in str(error).split(_CONTINUED))
