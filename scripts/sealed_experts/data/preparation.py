"""From a source's rows to the two sides of a prepared dataset, each unit of privacy decided alone."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.records import Record, write_records
from sealed_experts.data.rows import TRAIN, VAL, BadRow, Row
from sealed_experts.data.sources import RECORD, Source
from sealed_experts.data.split import side_of_unit, split_key
from sealed_experts.data.statistics import CountTokens, describe
from sealed_experts.data.units import common_scheme
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.files.digests import digest_of_files, sha256_file

NAMED_BAD_ROWS = 20

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset's two sides and what was left out on the way.

    Attributes:
        unit: how the units' ids are made: `record`, `field:` and a field's name, or `mixed`.
        dropped_from_val: combined datasets: held-out rows that another part trains on.
        groups_on_both_sides: groups that units in several of them tear apart.
    """

    name: str
    unit: str
    train: list[Record]
    val: list[Record]
    duplicates_dropped: int
    dropped_from_val: int
    groups_on_both_sides: int
    bad_rows: list[BadRow]


def prepare(
    settings: Source, *, name: str, seed: int, parts: Sequence[Path] = (), log: Log = lambda line: None
) -> Prepared:
    """Read a dataset, drop bad rows and exact duplicates, and split it.

    Every bad row is written to `log`, and whether groups could not be kept together. Order within a side is the
    source's.

    Raises:
        UserError: too many bad rows, no usable row, nothing left on one side, or a part is not prepared.
    """
    scheme = common_scheme(map(_scheme_of, parts)) if parts else settings.unit_scheme()
    rows, bad = usable_rows(settings.read(parts=parts), max_bad_share=settings.bad_share(), log=log, name=name)
    owned = [(_record(row), row) for row in rows]
    sides = _sides(owned, settings=settings, seed=seed)
    distinct: dict[tuple[str, str], tuple[Record, Row]] = {}
    for record, row in owned:
        distinct.setdefault((record.unit, record.id), (record, row))
    train, val = _placed(list(distinct.values()), sides=sides, scheme=scheme)
    torn = _torn_groups(owned, sides)
    if torn:
        log(
            f"{torn} groups stand on both sides of the split: units belong to several of them, and a unit is never torn"
            " apart; leave out `group`, or name a `unit` within it"
        )
    prepared = Prepared(
        name=name,
        unit=scheme,
        train=train,
        val=val,
        duplicates_dropped=len(rows) - len(distinct),
        dropped_from_val=len(distinct) - len(train) - len(val),
        groups_on_both_sides=torn,
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
        "groups_on_both_sides": prepared.groups_on_both_sides,
        "bad_rows": {"count": len(prepared.bad_rows), "reasons": dict(reasons)},
        "digest": digest_of_files({"train.jsonl": sha256_file(train), "val.jsonl": sha256_file(val)}),
    }
    write_json(stats, statistics)
    return statistics


def _record(row: Row) -> Record:
    return Record.from_text(instruction=row.instruction, input=row.input, output=row.output, unit=row.unit)


def _sides(owned: Sequence[tuple[Record, Row]], *, settings: Source, seed: int) -> dict[str, str]:
    """Return {unit: side}. Duplicates count too, so that the order of rows decides nothing."""
    groups: dict[str, set[str]] = collections.defaultdict(set)
    inherited: dict[str, set[str]] = collections.defaultdict(set)
    for record, row in owned:
        groups[record.unit].add(_group(row))
        if row.side is not None:
            inherited[record.unit].add(row.side)
    key = split_key(seed)
    sides = {unit: side_of_unit(of, key=key, val_fraction=settings.held_out_share()) for unit, of in groups.items()}
    # A unit that any part trains on is never held out in the combination.
    return sides | {unit: TRAIN if TRAIN in of else VAL for unit, of in inherited.items()}


def _placed(
    distinct: Sequence[tuple[Record, Row]], *, sides: Mapping[str, str], scheme: str
) -> tuple[list[Record], list[Record]]:
    """Return the two sides. Of a combination's held-out rows, those stay that no part trains on.

    What is trained on depends on each unit alone, as differential privacy asks: only held-out rows, which it does not
    protect, are dropped by looking at others.
    """
    train = [record for record, row in distinct if sides[record.unit] == TRAIN and row.side in (None, TRAIN)]
    learned = {said for record in train for said in _sayings(record, scheme)}
    val = [
        record
        for record, row in distinct
        if sides[record.unit] == VAL
        and (row.side is None or (row.side == VAL and learned.isdisjoint(_sayings(record, scheme))))
    ]
    return train, val


def _sayings(record: Record, scheme: str) -> set[str]:
    """Return what must not be held out where it is trained on.

    Where records are the units, questions are not torn apart by the split of a part, and so not here. Units such as
    customers may well ask the same.
    """
    return {f"record:{record.id}", f"question:{record.question}"} if scheme == RECORD else {f"record:{record.id}"}


def _torn_groups(owned: Sequence[tuple[Record, Row]], sides: Mapping[str, str]) -> int:
    found: dict[str, set[str]] = collections.defaultdict(set)
    for record, row in owned:
        if row.side is None:
            found[_group(row)].add(sides[record.unit])
    return sum(len(of) > 1 for of in found.values())


def _group(row: Row) -> str:
    """Return the identity of a row's group: its own, else its unit, else its question."""
    if row.group is not None:
        return f"group:{row.group}"
    return f"instruction:{row.instruction}" if row.unit is None else f"unit:{row.unit}"


def _scheme_of(part: Path) -> str:
    """Return what a prepared dataset's stats.json calls its unit."""
    path = part / "stats.json"
    statistics = read_json(path)
    unit = statistics.get("unit") if isinstance(statistics, dict) else None
    if not isinstance(unit, str):
        raise UserError(f"{path} does not say what a unit is: delete it and run again")
    return unit


def _check_sides(prepared: Prepared) -> None:
    for side, records, remedy in (
        (TRAIN, prepared.train, "lower val_fraction"),
        (VAL, prepared.val, "raise val_fraction"),
    ):
        if not records:
            dropped = f", {prepared.dropped_from_val} dropped from val" if prepared.dropped_from_val else ""
            raise UserError(
                f"dataset {prepared.name}: no record falls on the {side} side of the split "
                f"({len(prepared.train)} train, {len(prepared.val)} val{dropped}): give more groups of records, or "
                f"{remedy}"
            )
