"""Making a recipient's key, which opens the packages that are encrypted for it."""

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
    """Paths of a new key's halves, and its fingerprint."""

    path: Path
    public: Path
    fingerprint: str


def recipients_folder() -> Path:
    """Return the folder of recipients' private keys. It may not exist yet."""
    return home_folder() / "recipients"


def create_recipient(*, name: str, secret: bytes | None) -> RecipientFiles:
    """Make a key. Its private half is written with mode 0600, encrypted if a passphrase is given.

    Raises:
        UserError: a key of this name exists, the library here cannot make one, or the folder cannot be used.
    """
    folder = private_folder(recipients_folder())
    with folder_lock(folder):
        path = folder / f"{checked_name(name)}.pem"
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists: choose another --name, or move that key away first")
        identity = generate_identity()
        # The public half first: alone it is worth nothing, and a private half that is there is complete.
        save_recipient(path.with_suffix(".pub"), identity.recipient)
        save_identity(path, identity, passphrase=secret)
    return RecipientFiles(path=path, public=path.with_suffix(".pub"), fingerprint=identity.recipient.fingerprint)
