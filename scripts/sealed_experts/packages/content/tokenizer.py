"""The base's tokenizer as members of a package, for programs that load it from the adapter's folder.

Our engine never reads these members. It uses the base's own tokenizer; the manifest states the base's digest.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.files.regular_file import open_regular
from sealed_experts.packages.content.manifest_schema import TOKENIZER_MEMBERS
from sealed_experts.packages.errors import PackageError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_CLASS = re.compile(r"[A-Za-z0-9_]{1,100}")


def tokenizer_members(folder: Path, *, base: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the tokenizer's files in the folder of a base.

    Args:
        folder: the base's folder.
        base: the content of its base.json.

    Raises:
        UserError: a file is missing, too large, or not the one that base.json describes.
        PackageError: a package may not hold the content of a file.
    """
    listed = base["files"]
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        if name not in listed:
            raise UserError(f"the base in {folder} has no {name}, so `package.tokenizer` cannot be true: set it false")
    members = {name: _read(folder / name) for name in TOKENIZER_MEMBERS if name in listed}
    for name, content in members.items():
        if sha256_bytes(content) != listed[name]:
            raise UserError(f"{folder / name} is not the file that base.json describes: make the base again")
    check_tokenizer(members)
    return members


def check_tokenizer(members: Mapping[str, bytes]) -> None:
    """Check the tokenizer's members, if there are any.

    transformers loads the code that tokenizer_config.json names (`auto_map`), and any file that a key ending in `_file`
    names. Such keys are refused.

    Raises:
        PackageError: a member is not strict JSON (or the chat template is not UTF-8 text), or has such a key.
    """
    for name in sorted(members.keys() & TOKENIZER_MEMBERS.keys()):
        content = members[name]
        if not name.endswith(".json"):
            _text(content, name)
            continue
        try:
            value = strict_json(_text(content, name))
        except (ValueError, RecursionError) as error:
            raise PackageError(f"{name}: it is not strict JSON: {str(error)[:200]}") from error
        if not isinstance(value, dict):
            raise PackageError(f"{name}: it must be a JSON object")
        if name == TOKENIZER_CONFIG:
            _check_config(value)


def _check_config(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key == "auto_map" or (key.endswith("_file") and value is not None):
            raise PackageError(f"{TOKENIZER_CONFIG}: the key {key[:100]!a} can load code or other files; remove it")
    named = config.get("tokenizer_class")
    if named is not None and not (isinstance(named, str) and _CLASS.fullmatch(named)):
        raise PackageError(f"{TOKENIZER_CONFIG}: tokenizer_class is {ascii(named)[:100]}; it must be a class's name")


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"{name}: it is not UTF-8 text (byte {error.start})") from error


def _read(path: Path) -> bytes:
    limit = TOKENIZER_MEMBERS[path.name]
    try:
        with open_regular(path) as (stream, status):
            if status.st_size > limit:
                raise UserError(f"{path} has {status.st_size} bytes; a package holds at most {limit} of it")
            return stream.read(limit)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
