"""`sealed-experts keys list`: show your keys and the trusted publishers."""

import argparse
import json
import os
from pathlib import Path
from typing import TypeAlias

from sealed_experts.cli.publishers import described, limits
from sealed_experts.errors import UserError

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_list(commands: _Commands) -> None:
    """Register `list`."""
    parser = commands.add_parser("list", help="show your own keys and the trusted publishers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=list_keys)


def list_keys(args: argparse.Namespace) -> int:
    """Show the user's keys and the trusted publishers; return 0.

    Raises:
        UserError: the signing key cannot be used. Everything else was shown before.
    """
    from sealed_experts.packages.keys.private_keys import key_path, keys_folder
    from sealed_experts.packages.keys.trust import load_trust
    from sealed_experts.packages.recipients.recipient_files import recipients_folder

    path, store = key_path(), load_trust()
    signing, problem = _fingerprint_of(path) if os.path.lexists(path) else (None, None)
    kept = [file for file in sorted(keys_folder().glob("*.pem")) if problem is None or file != path]
    own = {file.stem: _fingerprint_of(file)[0] for file in kept}
    recipients = {file: _recipient_fingerprint(file) for file in sorted(recipients_folder().glob("*.pub"))}
    if args.json:
        trusted = [described(publisher) for publisher in store]
        own_keys = [{"name": name, "fingerprint": fingerprint} for name, fingerprint in own.items()]
        signing_key = {"path": str(path), "fingerprint": signing}
        readers = [{"name": file.stem, "public": str(file), "fingerprint": known} for file, known in recipients.items()]
        print(json.dumps({"signing_key": signing_key, "keys": own_keys, "recipients": readers, "trusted": trusted}))
    else:
        missing = "cannot be used" if problem else f"no key yet (`sealed-experts keys create` makes {path})"
        print(f"signs:   {path} {signing or missing}" if signing or problem else f"signs:   {missing}")
        for name, fingerprint in own.items():
            if fingerprint is None or fingerprint != signing:
                print(f"kept:    {name} {fingerprint or '(unreadable: sealed-experts keys export says why)'}")
        for file, fingerprint in recipients.items():
            print(f"opens:   {file.stem} {fingerprint or '(unreadable)'} (public half: {file})")
        for publisher in store:
            print(f"{publisher.status() + ':':8} {publisher.name} {publisher.fingerprint}{limits(publisher)}")
        if not len(store):
            print("trusted: nobody yet")
    if problem is not None:
        raise problem
    return 0


def _fingerprint_of(path: Path) -> tuple[str | None, UserError | None]:
    """Return a key's fingerprint, or the error that prevents it: one damaged file must not hide the others."""
    from sealed_experts.packages.keys.private_keys import public_half

    try:
        return public_half(path).fingerprint, None
    except UserError as error:
        return None, error


def _recipient_fingerprint(path: Path) -> str | None:
    from sealed_experts.packages.recipients.recipient_files import load_recipient

    try:
        return load_recipient(path).fingerprint
    except UserError:
        return None
