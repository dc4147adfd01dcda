"""Seal an expert: its adapter, manifest, model card, licence, receipt and provenance in one signed package."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts import __version__
from sealed_experts.data.records import read_records, records_digest
from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.files.atomic import write_error
from sealed_experts.files.canonical import read_json
from sealed_experts.files.digests import sha256_file
from sealed_experts.files.home import home_folder
from sealed_experts.files.planned_digests import unchanged
from sealed_experts.packages.content.code_revision import code_revision
from sealed_experts.packages.content.linter import CONFIG, WEIGHTS
from sealed_experts.packages.content.package_content import SealingInputs, package_content
from sealed_experts.packages.content.provenance import Origin
from sealed_experts.packages.content.tokenizer import tokenizer_members
from sealed_experts.packages.job import PackageJob, package_from_json
from sealed_experts.packages.keys.private_keys import PublisherKey, load_key
from sealed_experts.packages.keys.sealing_key import check_signatures
from sealed_experts.packages.recipients.recipient_files import load_recipient
from sealed_experts.packages.tgsp.package import seal_package
from sealed_experts.packages.times import read_epoch
from sealed_experts.privacy.ledger.owner_names import owner_names
from sealed_experts.privacy.ledger.published_receipt import covering, released
from sealed_experts.privacy.ledger.releases import ReleaseLog

ROOT = Path(__file__).resolve().parents[1]
# `receipt` names the metrics of the last stage. Their privacy receipt covers every stage that the choice looked at.
_SELECTION = {"stage", "reason", "candidates", "metrics", "receipt"}


@reports_user_errors
def main() -> None:
    args = _arguments()
    # Check this first: a library that the ledger imports reads it too, and fails on a wrong value with a traceback.
    epoch = read_epoch(os.environ)
    key = _key_of(args.publisher)
    settings = package_from_json(args.settings)
    package = settings.package
    with unchanged(args.digests):
        recipients = [load_recipient(Path(path)) for path in package.recipients]
        licence = _licence(package.licence_file)
    check_signatures({settings.name: package.signatures}, has=key.public.algorithms)
    manifest, members = package_content(_inputs(args, settings, licence=licence, epoch=epoch))
    _remove_expert_file(args.output.with_suffix(".expert"))
    digest = seal_package(
        args.output,
        manifest=manifest,
        members=members,
        key=key,
        signatures=package.signatures or None,
        recipients=recipients,
        compression=package.compression,
    )
    size = args.output.stat().st_size
    print(f"sealed {args.output}: {size} bytes, digest {digest}, publisher {key.public.fingerprint}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peft", required=True, type=Path, help="folder of adapter_config.json and the weights")
    parser.add_argument("--selection", required=True, type=Path, help="selection.json")
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="the metrics of all stages, in order")
    parser.add_argument(
        "--base", required=True, type=Path, help="the base's base.json; config.json is in the same folder"
    )
    parser.add_argument(
        "--train",
        nargs="+",
        type=Path,
        help="all records that it learned from, also through other adapters; without this, its units are unknown",
    )
    parser.add_argument("--evaluation", nargs="?", type=Path, help="evaluation.json, if the dataset is declared public")
    parser.add_argument("--settings", required=True, help="the package's settings, as JSON")
    parser.add_argument("--digests", default="{}", help="digests of the user's files that it reads, as JSON")
    parser.add_argument("--publisher", required=True, help="fingerprint of the key to sign with")
    parser.add_argument("--output", required=True, type=Path, help="the package to write")
    return parser.parse_args()


def _inputs(
    args: argparse.Namespace, settings: PackageJob, *, licence: bytes | None, epoch: int | None
) -> SealingInputs:
    """Read every other input, and record the version in the release log."""
    selection = _selection(args.selection)
    stages = _metrics_by_stage(selection, args.metrics)
    last, shipped = stages[selection["candidates"][-1]], stages[selection["stage"]]
    units = None if args.train is None else _units(args.train, trained_on=last["train_digest"])
    receipt = covering(last["privacy"], shipped=shipped["privacy"], selection=selection)
    lock = ROOT / "requirements.txt"
    base = read_json(args.base)
    return SealingInputs(
        settings=settings,
        selection=selection,
        metrics=shipped,
        stages=stages,
        privacy=released(receipt, expert=settings.name, units=units, log=ReleaseLog(home_folder())),
        base=base,
        base_config=read_json(args.base.parent / "config.json"),
        evaluation=None if args.evaluation is None else read_json(args.evaluation),
        licence=licence,
        adapter_config=_content(args.peft / CONFIG, "--peft must be a folder that export_peft wrote"),
        adapter_weights=args.peft / WEIGHTS,
        tokenizer=tokenizer_members(args.base.parent, base=base) if settings.package.tokenizer else {},
        names=owner_names(),
        origin=Origin(
            version=__version__,
            revision=code_revision(ROOT),
            lock=sha256_file(lock) if lock.is_file() else None,
        ),
        epoch=epoch,
    )


def _units(paths: list[Path], *, trained_on: str) -> set[str]:
    """Return the units of all these records. The last stage was trained on one of the files: others would be a lie."""
    sets = [read_records(path) for path in paths]
    if trained_on not in map(records_digest, sets):
        raise UserError("--train: none of these files holds the records that the last stage was trained on")
    return {record.unit for records in sets for record in records}


def _selection(path: Path) -> Mapping[str, Any]:
    selection = read_json(path)
    lacking = sorted(_SELECTION - selection.keys()) if isinstance(selection, Mapping) else sorted(_SELECTION)
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}: delete it and run again")
    return selection


def _metrics_by_stage(selection: Mapping[str, Any], paths: list[Path]) -> dict[str, Mapping[str, Any]]:
    """Read the metrics of every stage. The files of the chosen and of the last stage must be those in the selection."""
    stages = selection["candidates"]
    of = dict(zip(stages, paths, strict=False))
    expected = {selection["stage"]: selection["metrics"], stages[-1]: selection["receipt"]}
    if len(of) != len(paths) or any(str(of.get(stage)) != path for stage, path in expected.items()):
        raise UserError(
            f"--metrics must give one file for each of {', '.join(stages)}, in this order, and the files that"
            f" selection.json names: delete selection.json and run again"
        )
    return {stage: _metrics(path) for stage, path in of.items()}


def _metrics(path: Path) -> Mapping[str, Any]:
    metrics = read_json(path)
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get("privacy"), Mapping):
        raise UserError(f"{path} holds no privacy record: delete it and run again")
    return metrics


def _licence(path: str | None) -> bytes | None:
    return None if path is None else _content(Path(path), "package.licence_file must be a readable file")


def _content(path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {expected}") from error


def _remove_expert_file(path: Path) -> None:
    """Remove the `.expert` file of the old package: its content is old, and not encrypted if the new package is.

    Call this before the new package gets its name: a kill then never leaves both. `seal_expert` makes the file again.
    """
    try:
        path.unlink()
        print(f"removed {path}, which was made from the old package")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise write_error(path, error) from error


def _key_of(publisher: str) -> PublisherKey:
    """Return the user's signing key.

    Raises:
        UserError: it is not the publisher's key.
    """
    key = load_key()
    if key.public.fingerprint != publisher:
        raise UserError(
            f"the signing key has the fingerprint {key.public.fingerprint}, but the package must be signed by "
            f"{publisher}: set SEALED_EXPERTS_KEY to that publisher's key, or run the workflow again with this key"
        )
    return key


if __name__ == "__main__":
    sys.exit(main())
