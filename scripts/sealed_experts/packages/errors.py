"""The reasons to refuse a package. Verification raises an error; it never returns a result."""

import contextlib
import os
from collections.abc import Iterator

from sealed_experts.errors import UserError


class PackageError(UserError):
    """The package's content is not what it must be."""

    exit_code = 11


class SignatureError(PackageError):
    """No trusted publisher signed these bytes."""

    exit_code = 5


class IncompatibleError(PackageError):
    """A valid package that this version of the program cannot use."""

    exit_code = 4


class EncryptedError(UserError):
    """The package is encrypted, and the given key, if any, does not open it."""


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of the file or folder in front of an error's message."""
    try:
        yield
    except (PackageError, EncryptedError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error
