"""The exception for mistakes that the user can correct, and how a command reports it."""

import contextlib
import errno
import functools
import sys
from collections.abc import Callable

from sealed_experts.text import printable

_CONTINUED = "\n  "  # between the lines of one message
_EXIT_CTRL_C = 130  # as shells report a program that Ctrl-C ended
# Parts of the RuntimeErrors by which PyTorch, CUDA, cuBLAS, cuDNN and NCCL report that memory ran out.
_NO_MEMORY = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key or row), and what would be right. Commands print it without a
    traceback. Every other exception is a bug in this program and keeps its traceback.
    """

    exit_code = 1


class UsageError(UserError):
    """Command-line options that cannot be used together."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether the device or the machine ran out of memory. Libraries often report this as a RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        # By name and text, because this module must not import torch.
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY))
    )


def reports_user_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make `main` print a UserError as one plain message on standard error and return its exit code.

    The same holds when memory or disk space runs out, and after Ctrl-C: these are not bugs either.
    """

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt:
            message, code = "interrupted", _EXIT_CTRL_C
        except UserError as error:
            message, code = f"error: {shown(error)}", error.exit_code
        except (MemoryError, RuntimeError, OSError) as error:
            if is_out_of_memory(error):
                text = "out of memory: run the same command again with more (the next of several attempts asks for it)"
            elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = "no space left on a disk: free some and run the same command again"
            else:
                raise
            message, code = f"error: {text}", UserError.exit_code
        # The log may be on the full disk: then only the exit code reports the error.
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr)
        return code

    return guarded


def shown(error: UserError) -> str:
    """Return an error's message for a terminal. File names in it can contain any character, so those are escaped.

    Only our own line breaks stay, each followed by an indent: no file name can look like a message.
    """
    return _CONTINUED.join(printable(line) for line in str(error).split(_CONTINUED))
