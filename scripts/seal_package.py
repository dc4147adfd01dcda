"""Seal an expert: its adapter, manifest, model card and privacy receipt in one signed package."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.data.records import read_records
from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.canonical import read_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.privacy.ledger.releases import ReleaseLog
from sealed_experts.sealing.content import SealingInputs, package_content
from sealed_experts.sealing.home import home_folder
from sealed_experts.sealing.keys import PublisherKey, load_key
from sealed_experts.sealing.linter import CONFIG, WEIGHTS
from sealed_experts.sealing.package import seal
from sealed_experts.sealing.receipt import covering
from sealed_experts.sealing.release import released
from sealed_experts.settings.chain import package_from_json

# `receipt` names the metrics of the chain's last stage, whose privacy covers every stage that the choice looked at.
_SELECTION = {"stage", "reason", "candidates", "metrics", "receipt"}


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peft", required=True, type=Path, help="folder of adapter_config.json and the weights")
    parser.add_argument("--selection", required=True, type=Path, help="selection.json")
    parser.add_argument("--base", required=True, type=Path, help="the base's base.json")
    parser.add_argument("--train", type=Path, help="its training records; without them, their units count as unknown")
    parser.add_argument("--settings", required=True, help="the package's settings, as JSON")
    parser.add_argument("--publisher", required=True, help="fingerprint of the key to sign with")
    parser.add_argument("--output", required=True, type=Path, help="the package to write")
    args = parser.parse_args()
    key = _key_of(args.publisher)
    selection = _selection(args.selection)
    metrics = read_json(selection["metrics"])
    settings = package_from_json(args.settings)
    units = None if args.train is None else {record.unit for record in read_records(args.train)}
    receipt = covering(_privacy(selection["receipt"]), shipped=_privacy(selection["metrics"]), selection=selection)
    manifest, members = package_content(
        SealingInputs(
            settings=settings,
            selection=selection,
            metrics=metrics,
            privacy=released(receipt, expert=settings.name, units=units, log=ReleaseLog(home_folder())),
            base=read_json(args.base),
            adapter_config=_content(args.peft / CONFIG),
            adapter_weights=_content(args.peft / WEIGHTS),
        )
    )
    data = seal(manifest=manifest, members=members, key=key)
    write_bytes(args.output, data)
    print(f"sealed {args.output}: {len(data)} bytes, digest {sha256_bytes(data)}, publisher {key.public.fingerprint}")


def _selection(path: Path) -> Mapping[str, Any]:
    selection = read_json(path)
    lacking = sorted(_SELECTION - selection.keys()) if isinstance(selection, Mapping) else sorted(_SELECTION)
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}: delete it and run again")
    return selection


def _privacy(path: str) -> Mapping[str, Any]:
    metrics = read_json(path)
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get("privacy"), Mapping):
        raise UserError(f"{path} holds no privacy record: delete it and run again")
    return metrics["privacy"]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; --peft must be a folder of export_peft's") from error


def _key_of(publisher: str) -> PublisherKey:
    """Return the key at hand.

    Raises:
        UserError: it is not the publisher's.
    """
    key = load_key()
    if key.public.fingerprint != publisher:
        raise UserError(
            f"the key at hand has the fingerprint {key.public.fingerprint}, but the package is to be signed by "
            f"{publisher}: set SEALED_EXPERTS_KEY to that publisher's key, or run the workflow again with this one"
        )
    return key


if __name__ == "__main__":
    sys.exit(main())
