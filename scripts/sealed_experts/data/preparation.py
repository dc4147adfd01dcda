"""From a source's rows to the two sides of a prepared dataset, each unit of privacy decided alone."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.records import Record, write_records
from sealed_experts.data.sources import read_rows
from sealed_experts.data.sources.rows import TRAIN, VAL, BadRow, Row
from sealed_experts.data.split import side_of_unit, split_key
from sealed_experts.data.statistics import CountTokens, describe
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import write_json
from sealed_experts.files.digests import digest_of_files, sha256_file
from sealed_experts.settings.sources import DatasetSettings

NAMED_BAD_ROWS = 20

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset's two sides and what was left out on the way."""

    name: str
    unit: str
    train: list[Record]
    val: list[Record]
    duplicates_dropped: int
    dropped_from_val: int  # combined datasets: held-out rows of units that another part trains on
    bad_rows: list[BadRow]


def prepare(
    settings: DatasetSettings, *, name: str, seed: int, parts: Sequence[Path] = (), log: Log = lambda line: None
) -> Prepared:
    """Read a dataset, drop bad rows and exact duplicates, and split it.

    Every bad row is written to `log`. Order within a side is the source's.

    Raises:
        UserError: too many bad rows, no usable row, or nothing left on one side.
    """
    rows, bad = usable_rows(read_rows(settings, parts=parts), max_bad_share=settings.max_bad_share, log=log, name=name)
    owned = [(_record(row), row) for row in rows]
    sides = _sides(owned, settings=settings, seed=seed)
    distinct: dict[tuple[str, str], tuple[Record, Row]] = {}
    for record, row in owned:
        distinct.setdefault((record.unit, record.id), (record, row))
    by_side: dict[str, list[Record]] = {TRAIN: [], VAL: []}
    dropped_from_val = 0
    for record, row in distinct.values():
        side = sides[record.unit]
        if row.side not in (None, side):
            dropped_from_val += 1
        else:
            by_side[side].append(record)
    prepared = Prepared(
        name=name,
        unit=_unit_name(settings, [record for record, _ in distinct.values()]),
        train=by_side[TRAIN],
        val=by_side[VAL],
        duplicates_dropped=len(rows) - len(distinct),
        dropped_from_val=dropped_from_val,
        bad_rows=bad,
    )
    _check_sides(prepared)
    return prepared


def usable_rows(
    rows: Iterable[Row | BadRow], *, max_bad_share: float, name: str, log: Log
) -> tuple[list[Row], list[BadRow]]:
    """Part usable rows from bad ones and log every bad one.

    Raises:
        UserError: more than `max_bad_share` of the rows are bad, or none is usable.
    """
    good: list[Row] = []
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row, Row):
            good.append(row)
        else:
            bad.append(row)
            log(f"bad row {row}")
    total = len(good) + len(bad)
    if len(bad) > max_bad_share * total:
        first = "\n".join(f"  {row}" for row in bad[:NAMED_BAD_ROWS])
        more = (
            f"\n  and {len(bad) - NAMED_BAD_ROWS} more (all of them are in the log)"
            if len(bad) > NAMED_BAD_ROWS
            else ""
        )
        raise UserError(
            f"dataset {name}: {len(bad)} of {total} rows cannot be used, more than max_bad_share {max_bad_share:g} "
            f"allows; mend them or raise max_bad_share:\n{first}{more}"
        )
    if not good:
        raise UserError(f"dataset {name}: there is no row to use: give a source that holds records")
    return good, bad


def write_prepared(
    prepared: Prepared, *, train: Path, val: Path, stats: Path, count_tokens: CountTokens
) -> dict[str, Any]:
    """Write the two sides and stats.json, and return the statistics."""
    write_records(train, prepared.train)
    write_records(val, prepared.val)
    reasons = collections.Counter(row.reason for row in prepared.bad_rows)
    statistics = {
        "dataset": prepared.name,
        "unit": prepared.unit,
        "train": describe(prepared.train, count_tokens=count_tokens),
        "val": describe(prepared.val, count_tokens=count_tokens),
        "duplicates_dropped": prepared.duplicates_dropped,
        "dropped_from_val": prepared.dropped_from_val,
        "bad_rows": {"count": len(prepared.bad_rows), "reasons": dict(reasons)},
        "digest": digest_of_files({"train.jsonl": sha256_file(train), "val.jsonl": sha256_file(val)}),
    }
    write_json(stats, statistics)
    return statistics


def _record(row: Row) -> Record:
    return Record.from_text(instruction=row.instruction, input=row.input, output=row.output, unit=row.unit)


def _sides(owned: Sequence[tuple[Record, Row]], *, settings: DatasetSettings, seed: int) -> dict[str, str]:
    """Return {unit: side}. Duplicates count too, so that the order of rows decides nothing."""
    groups: dict[str, set[str]] = collections.defaultdict(set)
    inherited: dict[str, set[str]] = collections.defaultdict(set)
    for record, row in owned:
        groups[record.unit].add(_group(row))
        if row.side is not None:
            inherited[record.unit].add(row.side)
    key = split_key(seed)
    sides = {unit: side_of_unit(of, key=key, val_fraction=settings.val_fraction) for unit, of in groups.items()}
    # A unit that any part trains on is never held out in the combination.
    return sides | {unit: TRAIN if TRAIN in of else VAL for unit, of in inherited.items()}


def _group(row: Row) -> str:
    """Return the identity of a row's group: its own, else its unit, else its question."""
    if row.group is not None:
        return f"group:{row.group}"
    return f"instruction:{row.instruction}" if row.unit is None else f"unit:{row.unit}"


def _unit_name(settings: DatasetSettings, records: Sequence[Record]) -> str:
    if all(record.unit == record.id for record in records):
        return "record"
    return getattr(settings, "unit", None) or "unit of its part"


def _check_sides(prepared: Prepared) -> None:
    for side, records, remedy in (
        (TRAIN, prepared.train, "lower val_fraction"),
        (VAL, prepared.val, "raise val_fraction"),
    ):
        if not records:
            raise UserError(
                f"dataset {prepared.name}: no record falls on the {side} side of the split "
                f"({len(prepared.train)} train, {len(prepared.val)} val): give more groups of records, or {remedy}"
            )
