"""A PEFT folder with a model signature next to it, for exchange with other tools."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.files.regular_file import open_regular
from sealed_experts.packages import model_signature
from sealed_experts.packages.content.linter import CONFIG, WEIGHTS, AdapterFacts, lint_adapter
from sealed_experts.packages.content.manifest_schema import MEMBERS
from sealed_experts.packages.errors import PackageError, named

_MANIFEST = "manifest.json"
_LIMITS = {**MEMBERS, _MANIFEST: 1 << 21}
_MOST_ENTRIES = 100


@dataclass(frozen=True, kw_only=True)
class SignedFolder:
    """A folder in which a given key signed every file and the adapter passed the linter.

    Attributes:
        digests: SHA-256 of every file, by name.
        facts: the facts in the adapter's files.
    """

    digests: dict[str, str]
    facts: AdapterFacts


def signature_path(folder: Path) -> Path:
    """Return the default path of a folder's signature: next to the folder, with `.sig` after its name."""
    whole = Path(os.path.abspath(folder))
    return whole.with_name(f"{whole.name}.sig")


def sign_folder(folder: Path, *, key: Path, output: Path | None = None) -> Path:
    """Write the model signature of a PEFT folder, and return its path.

    Raises:
        UserError: the folder or the key cannot be read, or the signature exists.
        PackageError: the folder holds something that is not allowed in an adapter.
    """
    private = model_signature.read_private_key(key)
    members = _read(folder)
    lint_adapter(members)
    path = output or signature_path(folder)
    if os.path.lexists(path):
        raise UserError(f"{path} exists: give another --output, or remove it to sign again")
    if Path(os.path.abspath(path)).parent == Path(os.path.abspath(folder)):
        raise UserError(f"{path} is in the folder that it signs: put it next to {folder}")
    name = Path(os.path.abspath(folder)).name
    write_bytes(path, model_signature.sign_digests(_digests(members), folder=name, key=private))
    return path


def verify_folder(folder: Path, *, key: Path, signature: Path | None = None) -> SignedFolder:
    """Check a PEFT folder: its signature by `key`, missing and foreign files, the digests, the linter.

    Every file is read only once, so the checked content is the content that is used.

    Raises:
        UserError: the folder, the key or the signature cannot be read.
        SignatureError: the key did not sign it.
        PackageError: a file is foreign, missing or altered, or is not allowed in an adapter.
    """
    path = signature or signature_path(folder)
    public, bundle = model_signature.read_public_key(key), model_signature.read_bundle(path)
    with named(path):
        signed = model_signature.signed_digests(bundle, key=public)
    members = _read(folder)
    digests = _digests(members)
    for name in sorted(signed.keys() | digests.keys()):
        if name not in digests:
            raise PackageError(f"{folder}: member {name!a} is missing, which the signature lists")
        if name not in signed:
            raise PackageError(f"{folder}: member {name!a} is foreign: the signature does not list it")
        if signed[name] != digests[name]:
            raise PackageError(f"{folder}: member {name}: its SHA-256 is not the signed one, {signed[name]}")
    with named(folder):
        return SignedFolder(digests=digests, facts=lint_adapter(members))


def _read(folder: Path) -> dict[str, bytes]:
    """Read the files of a folder. It may hold only an expert's files: no folders, links, hidden files or pickles."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    foreign = sorted(set(names) - _LIMITS.keys())
    if foreign:
        raise PackageError(
            f"{folder}: member {foreign[0]!a} is foreign: an expert's folder holds only {', '.join(sorted(_LIMITS))}"
        )
    missing = [name for name in (CONFIG, WEIGHTS) if name not in names]
    if missing:
        raise PackageError(f"{folder}: member {missing[0]} is missing: this is not a PEFT folder")
    return {name: _content(folder / name, limit=_LIMITS[name]) for name in sorted(names)}


def _content(path: Path, *, limit: int) -> bytes:
    try:
        with open_regular(path, follow=False) as (stream, status):
            if status.st_size > limit:
                raise PackageError(
                    f"{path.parent}: member {path.name}: {status.st_size} bytes; at most {limit} are allowed"
                )
            return stream.read(limit)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PackageError(
                f"{path.parent}: member {path.name}: it is a symbolic link; only plain files are allowed"
            ) from error
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _digests(members: dict[str, bytes]) -> dict[str, str]:
    return {name: sha256_bytes(content) for name, content in members.items()}
