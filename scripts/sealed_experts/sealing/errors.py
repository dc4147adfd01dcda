"""What a package can be refused for. Verification raises; it never returns a verdict."""

from sealed_experts.errors import UserError


class PackageError(UserError):
    """The package's content is not what it must be."""

    exit_code = 11


class SignatureError(PackageError):
    """No trusted publisher vouches for these bytes."""

    exit_code = 5


class IncompatibleError(PackageError):
    """A sound package that this version cannot use."""

    exit_code = 4
