"""From a source's rows to the sides of a prepared dataset, each unit of privacy decided alone."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.records import Record, records_digest, sayings, write_records
from sealed_experts.data.rows import TEST, TRAIN, VAL, BadRow, Row
from sealed_experts.data.schemes import common_scheme
from sealed_experts.data.sources import Source
from sealed_experts.data.split import side_of_unit, split_key
from sealed_experts.data.statistics import CountTokens, describe
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.files.digests import digest_of_files

NAMED_BAD_ROWS = 20

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset's sides and what was left out on the way.

    Attributes:
        unit: how the units' ids are made: `record`, `field:` and a field's name, or `mixed`.
        test: None where the dataset has no test set of its own.
        dropped_from_val: validation records that are trained on, where they do not come from the split.
        dropped_from_test: test records that are trained on.
        groups_on_both_sides: groups that units in several of them tear apart.
    """

    name: str
    kind: str
    unit: str
    train: list[Record]
    val: list[Record]
    test: list[Record] | None
    duplicates_dropped: int
    dropped_from_val: int
    dropped_from_test: int
    groups_on_both_sides: int
    bad_rows: list[BadRow]


def prepare(
    settings: Source, *, name: str, seed: int, parts: Sequence[Path] = (), log: Log = lambda line: None
) -> Prepared:
    """Read a dataset, drop bad rows and exact duplicates, and split it.

    Every bad row is written to `log`, and whether groups could not be kept together. Order within a side is the
    source's.

    Raises:
        UserError: too many bad rows, no usable row, records of several kinds, nothing left on one side, or a part is
            not prepared.
    """
    scheme = common_scheme(map(_scheme_of, parts)) if parts else settings.unit_scheme()
    rows, bad = usable_rows(settings.read(parts=parts), max_bad_share=settings.bad_share(), log=log, name=name)
    sides = _sides(rows, settings=settings, seed=seed)
    first: dict[tuple[str | None, str, str], Row] = {}
    for row in rows:
        first.setdefault((row.side, row.record.unit, row.record.id), row)
    found, kept = _placed(list(first.values()), sides=sides, combined=bool(parts))
    torn = _torn_groups(rows, sides)
    if torn:
        log(
            f"{torn} groups stand on both sides of the split: units belong to several of them, and a unit is never torn"
            " apart; leave out `group`, or name a `unit` within it"
        )
    prepared = Prepared(
        name=name,
        kind=_kind_of(rows, name),
        unit=scheme,
        train=kept[TRAIN],
        val=kept[VAL],
        test=kept[TEST] if found[TEST] or settings.has_test_set() else None,
        duplicates_dropped=len(rows) - len(first),
        dropped_from_val=found[VAL] - len(kept[VAL]),
        dropped_from_test=found[TEST] - len(kept[TEST]),
        groups_on_both_sides=torn,
        bad_rows=bad,
    )
    _check_sides(prepared, rows, settings=settings)
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
    prepared: Prepared, *, train: Path, val: Path, stats: Path, count_tokens: CountTokens, test: Path | None = None
) -> dict[str, Any]:
    """Write the sides and stats.json, and return the statistics.

    Raises:
        UserError: there is a test set, but no file for it, or the reverse.
    """
    if (prepared.test is None) != (test is None):
        raise UserError(
            f"dataset {prepared.name} has {'no' if prepared.test is None else 'a'} test set of its own: write --test"
            " for one that has"
        )
    sides = {"train": prepared.train, "val": prepared.val} | ({} if prepared.test is None else {"test": prepared.test})
    for path, records in zip((train, val, test), sides.values(), strict=False):
        assert path is not None, "a test set has its file"
        write_records(path, records)
    reasons = collections.Counter(row.reason for row in prepared.bad_rows)
    statistics = {
        "dataset": prepared.name,
        "kind": prepared.kind,
        "unit": prepared.unit,
        **{side: describe(records, count_tokens=count_tokens) for side, records in sides.items()},
        "duplicates_dropped": prepared.duplicates_dropped,
        **{f"dropped_from_{side}": getattr(prepared, f"dropped_from_{side}") for side in sides if side != TRAIN},
        "groups_on_both_sides": prepared.groups_on_both_sides,
        "bad_rows": {"count": len(prepared.bad_rows), "reasons": dict(reasons)},
        "digest": digest_of_files({f"{side}.jsonl": records_digest(records) for side, records in sides.items()}),
    }
    write_json(stats, statistics)
    return statistics


def _sides(rows: Sequence[Row], *, settings: Source, seed: int) -> dict[str, str]:
    """Return {unit: side} of the rows that bring no side. Duplicates count too: the order of rows decides nothing."""
    groups: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.side is None:
            groups[row.record.unit].add(_group(row))
    key = split_key(seed)
    return {unit: side_of_unit(of, key=key, val_fraction=settings.held_out_share()) for unit, of in groups.items()}


def _placed(
    distinct: Sequence[Row], *, sides: Mapping[str, str], combined: bool
) -> tuple[dict[str, int], dict[str, list[Record]]]:
    """Return how many records each side was given, and those that stay there.

    What is trained on depends on each unit alone, as differential privacy asks: only held-out rows, which it does not
    protect, are dropped by looking at others. Those of the split itself are not: there, units are apart already.
    """
    given: dict[str, list[Row]] = {TRAIN: [], VAL: [], TEST: []}
    for row in distinct:
        given[row.side or sides[row.record.unit]].append(row)
    learned = {said for row in given[TRAIN] for said in _sayings(row.record, combined=combined)}
    kept = {
        side: [
            row.record
            for row in rows
            if side == TRAIN or row.side is None or learned.isdisjoint(_sayings(row.record, combined=combined))
        ]
        for side, rows in given.items()
    }
    return {side: len(rows) for side, rows in given.items()}, kept


def _sayings(record: Record, *, combined: bool) -> set[str]:
    """Return what must not be held out where it is trained on: of a combination, no unit that any part trains on."""
    return sayings(record) | {f"unit:{record.unit}"} if combined else sayings(record)


def _torn_groups(rows: Sequence[Row], sides: Mapping[str, str]) -> int:
    found: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.side is None:
            found[_group(row)].add(sides[row.record.unit])
    return sum(len(of) > 1 for of in found.values())


def _group(row: Row) -> str:
    """Return the identity of a row's group: its own, else its unit, else what its record has in common with others."""
    if row.group is not None:
        return f"group:{row.group}"
    record = row.record
    return f"{record.feature}:{record.kin}" if record.is_own_unit else f"unit:{record.unit}"


def _kind_of(rows: Sequence[Row], name: str) -> str:
    kinds = {row.record.feature for row in rows}
    if len(kinds) > 1:
        raise UserError(
            f"dataset {name} holds records of several kinds ({', '.join(sorted(kinds))}), and a stage learns from one"
            " kind: combine datasets of one `kind`"
        )
    return kinds.pop()


def _scheme_of(part: Path) -> str:
    """Return what a prepared dataset's stats.json calls its unit."""
    path = part / "stats.json"
    statistics = read_json(path)
    unit = statistics.get("unit") if isinstance(statistics, dict) else None
    if not isinstance(unit, str):
        raise UserError(f"{path} does not say what a unit is: delete it and run again")
    return unit


def _check_sides(prepared: Prepared, rows: Sequence[Row], *, settings: Source) -> None:
    """Refuse an empty side. Only a dataset that holds out everything needs no training records."""
    given = {row.side for row in rows}
    learns = settings.held_out_share() < 1 and not given <= {VAL, TEST}
    others = "give records for it that are not trained on"
    for side, records, remedy in (
        (TRAIN, prepared.train or not learns, "give more groups of records, or lower val_fraction"),
        (VAL, prepared.val, others if VAL in given else "give more groups of records, or raise val_fraction"),
        (TEST, prepared.test is None or prepared.test, others),
    ):
        if not records:
            dropped = {"val": prepared.dropped_from_val, "test": prepared.dropped_from_test}
            counted = "".join(f", {count} dropped from {of}" for of, count in dropped.items() if count)
            raise UserError(
                f"dataset {prepared.name}: no record falls on the {side} side of the split "
                f"({len(prepared.train)} train, {len(prepared.val)} val{counted}): {remedy}"
            )
