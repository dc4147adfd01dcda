"""The private key that opens a run's own encrypted packages."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.home import expanded
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.recipients.recipient_files import load_identity, load_recipient

VARIABLE = "SEALED_EXPERTS_IDENTITY"


def own_identity() -> Identity | None:
    """Return the private key in the file that ${SEALED_EXPERTS_IDENTITY} names; None if it is not set.

    Raises:
        UserError: the file cannot be read, or its passphrase is missing or wrong.
    """
    chosen = os.environ.get(VARIABLE)
    return load_identity(expanded(chosen, variable=VARIABLE)) if chosen else None


def check_readable(recipients: Mapping[str, Sequence[str]]) -> None:
    """Check that this run can open every package that it will encrypt, because it assembles the mixture from them.

    Args:
        recipients: each expert's `package.recipients`.

    Raises:
        UserError: a file does not hold a recipient's key, or the run's own key is not one of the recipients.
    """
    encrypted = {expert: paths for expert, paths in recipients.items() if paths}
    if not encrypted:
        return
    identity = own_identity()
    for expert, paths in encrypted.items():
        known = {load_recipient(Path(path)).fingerprint for path in paths}
        if identity is None or identity.recipient.fingerprint not in known:
            raise UserError(
                f"experts.{expert}.package.recipients: the mixture could not be assembled, because this run could not"
                f" read the package: list your own public key too, and set {VARIABLE} to the file of its private half"
            )
