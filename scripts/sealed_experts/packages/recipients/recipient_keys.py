"""Making the key of a recipient: the one that opens packages encrypted for it."""

from dataclasses import dataclass
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.home import home_folder, private_folder
from sealed_experts.files.locks import folder_lock
from sealed_experts.packages.keys.publisher import checked_name
from sealed_experts.packages.recipients.encryption import generate_identity
from sealed_experts.packages.recipients.recipient_files import save_identity, save_recipient


@dataclass(frozen=True, kw_only=True)
class RecipientFiles:
    """Where a new key's halves are, and its fingerprint."""

    path: Path
    public: Path
    fingerprint: str


def recipients_folder() -> Path:
    """Return the folder of recipients' private keys. It may not exist yet."""
    return home_folder() / "recipients"


def create_recipient(*, name: str, secret: bytes | None) -> RecipientFiles:
    """Make a key; its private half goes into a file of mode 0600, under a passphrase where one is given.

    Raises:
        UserError: a key of this name exists, the library here cannot make one, or the folder cannot be used.
    """
    folder = private_folder(recipients_folder())
    with folder_lock(folder):
        path = folder / f"{checked_name(name)}.pem"
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists: choose another --name, or move that key away first")
        identity = generate_identity()
        # The public half first: it is worth nothing without the other, which is then in place as a whole.
        save_recipient(path.with_suffix(".pub"), identity.recipient)
        save_identity(path, identity, passphrase=secret)
    return RecipientFiles(path=path, public=path.with_suffix(".pub"), fingerprint=identity.recipient.fingerprint)
