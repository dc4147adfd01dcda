"""From a source's rows to the sides of a prepared dataset. Each unit of privacy is decided independently."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.records import Record, overlap_keys, records_digest, write_records
from sealed_experts.data.rows import TEST, TRAIN, VAL, BadRow, Row
from sealed_experts.data.schemes import common_scheme
from sealed_experts.data.sources import Source
from sealed_experts.data.split import side_of_unit, split_key
from sealed_experts.data.statistics import CountTokens, describe, read_statistics
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import write_json
from sealed_experts.files.digests import digest_of_files

NAMED_BAD_ROWS = 20
LARGE_UNIT = 0.1  # a unit with a larger share of the rows is named: it may be no single person
FEW_HELD_OUT_GROUPS = 5  # with fewer expected, the share that is held out depends on luck

_ENCODING_HINT = (
    " (most of them are not UTF-8, and may be Windows-1252: save the file as UTF-8, for example with `iconv -f"
    " WINDOWS-1252 -t UTF-8`)"
)

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """The sides of a dataset, and what was left out.

    Attributes:
        unit: how the units' ids are made: `record`, `field:` with a field's name, or `mixed`.
        test: None if the dataset has no separate test set.
        dropped_from_val: validation records that were dropped because they are training records; the split makes none.
        dropped_from_test: test records that were dropped because they are training records.
        groups: the number of groups that the split divided; None if every side was given.
        groups_on_both_sides: groups that are on both sides, because units belong to several groups.
        large_units: units with many of the rows, and their numbers of rows.
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
    groups: int | None
    groups_on_both_sides: int
    large_units: dict[str, int]
    bad_rows: list[BadRow]


def prepare(
    settings: Source, *, name: str, seed: int, parts: Sequence[Path] = (), log: Log = lambda line: None
) -> Prepared:
    """Read a dataset, drop bad rows and exact duplicates, and split it.

    Every bad row is written to `log`, and warnings about the split and the units. Each side keeps the order of the
    source.

    Raises:
        UserError: there are too many bad rows, no usable row, or records of several kinds; or one side has no record,
            or a part is not prepared.
    """
    scheme = (
        common_scheme(read_statistics(part / "stats.json")["unit"] for part in parts)
        if parts
        else settings.unit_scheme()
    )
    rows, bad = usable_rows(settings.read(parts=parts), max_bad_share=settings.bad_share(), log=log, name=name)
    sides = _sides(rows, settings=settings, seed=seed)
    first: dict[tuple[str | None, str, str], Row] = {}
    for row in rows:
        first.setdefault((row.side, row.record.unit, row.record.id), row)
    found, kept = _by_side(list(first.values()), sides=sides, combined=bool(parts))
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
        groups=len({_group(row) for row in rows if row.side is None}) or None,
        groups_on_both_sides=_groups_on_both_sides(rows, sides),
        large_units=_large_units(rows),
        bad_rows=bad,
    )
    _check_sides(prepared, rows, settings=settings)
    for warning in _warnings(prepared, rows, settings=settings):
        log(f"WARNING: {warning}")
    return prepared


def usable_rows(
    rows: Iterable[Row | BadRow], *, max_bad_share: float, name: str, log: Log
) -> tuple[list[Row], list[BadRow]]:
    """Separate usable rows from bad rows, and log every bad row.

    Raises:
        UserError: more than `max_bad_share` of the rows are bad, or no row is usable.
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
        hint = _ENCODING_HINT if sum(row.reason == "not UTF-8" for row in bad) > len(bad) / 2 else ""
        raise UserError(
            f"dataset {name}: {len(bad)} of {total} rows cannot be used, more than max_bad_share {max_bad_share:g} "
            f"allows; correct them or raise max_bad_share{hint}:\n{first}{more}"
        )
    if not good:
        raise UserError(f"dataset {name}: there is no row to use: give a source that holds records")
    return good, bad


def write_prepared(
    prepared: Prepared, *, train: Path, val: Path, stats: Path, count_tokens: CountTokens, test: Path | None = None
) -> dict[str, Any]:
    """Write the sides and stats.json, and return the statistics.

    Raises:
        UserError: there is a test set but no file for it, or a file but no test set.
    """
    if (prepared.test is None) != (test is None):
        raise UserError(
            f"dataset {prepared.name} has {'no' if prepared.test is None else 'a'} separate test set: give --test if"
            " and only if it has one"
        )
    sides = {"train": prepared.train, "val": prepared.val} | ({} if prepared.test is None else {"test": prepared.test})
    for path, records in zip((train, val, test), sides.values(), strict=False):
        assert path is not None, "a test set has a file"
        write_records(path, records)
    reasons = collections.Counter(row.reason for row in prepared.bad_rows)
    statistics = {
        "dataset": prepared.name,
        "kind": prepared.kind,
        "unit": prepared.unit,
        **{side: describe(records, count_tokens=count_tokens) for side, records in sides.items()},
        "duplicates_dropped": prepared.duplicates_dropped,
        **{f"dropped_from_{side}": getattr(prepared, f"dropped_from_{side}") for side in sides if side != TRAIN},
        "groups": prepared.groups,
        "groups_on_both_sides": prepared.groups_on_both_sides,
        "large_units": prepared.large_units,
        "bad_rows": {"count": len(prepared.bad_rows), "reasons": dict(reasons)},
        "digest": digest_of_files({f"{side}.jsonl": records_digest(records) for side, records in sides.items()}),
    }
    write_json(stats, statistics)
    return statistics


def _sides(rows: Sequence[Row], *, settings: Source, seed: int) -> dict[str, str]:
    """Return {unit: side} for rows without a given side. Duplicates count too: so the order of rows does not matter."""
    groups: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.side is None:
            groups[row.record.unit].add(_group(row))
    key = split_key(seed)
    return {unit: side_of_unit(of, key=key, val_fraction=settings.held_out_share()) for unit, of in groups.items()}


def _by_side(
    distinct: Sequence[Row], *, sides: Mapping[str, str], combined: bool
) -> tuple[dict[str, int], dict[str, list[Record]]]:
    """Return how many records each side got, and the records that it keeps.

    Differential privacy needs that a unit's training records depend on that unit alone. So only held-out rows, which it
    does not protect, are dropped because of other rows. Rows that the split held out are never dropped, because the
    split keeps units separate.
    """
    given: dict[str, list[Row]] = {TRAIN: [], VAL: [], TEST: []}
    for row in distinct:
        given[row.side or sides[row.record.unit]].append(row)
    learned = {key for row in given[TRAIN] for key in _overlap_keys(row.record, combined=combined)}
    kept = {
        side: [
            row.record
            for row in rows
            if side == TRAIN or row.side is None or learned.isdisjoint(_overlap_keys(row.record, combined=combined))
        ]
        for side, rows in given.items()
    }
    return {side: len(rows) for side, rows in given.items()}, kept


def _overlap_keys(record: Record, *, combined: bool) -> set[str]:
    """Return `overlap_keys`; in a combined dataset also the unit, because another part may train on it."""
    return overlap_keys(record) | {f"unit:{record.unit}"} if combined else overlap_keys(record)


def _groups_on_both_sides(rows: Sequence[Row], sides: Mapping[str, str]) -> int:
    found: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.side is None:
            found[_group(row)].add(sides[row.record.unit])
    return sum(len(of) > 1 for of in found.values())


def _large_units(rows: Sequence[Row]) -> dict[str, int]:
    """Return the named units that hold more than `LARGE_UNIT` of the rows, the largest first."""
    counts = collections.Counter(row.record.unit for row in rows if not row.record.is_own_unit)
    return {unit: count for unit, count in counts.most_common() if count > LARGE_UNIT * len(rows)}


def _warnings(prepared: Prepared, rows: Sequence[Row], *, settings: Source) -> Iterable[str]:
    """Yield what is right for the program but probably not meant."""
    if prepared.groups_on_both_sides:
        yield (
            f"{prepared.groups_on_both_sides} groups are on both sides of the split: a unit stays on one side, but some"
            " units belong to several groups; leave out `group`, or name a `unit` within it"
        )
    share = settings.held_out_share()
    if prepared.groups and share < 1 and prepared.groups * share < FEW_HELD_OUT_GROUPS:
        total = len(prepared.train) + len(prepared.val)
        yield (
            f"the split is coarse: it divides {prepared.groups} groups, and val_fraction {share:g} held out"
            f" {len(prepared.val)} of {total} records ({len(prepared.val) / total:.0%}); give a `group` with more"
            " values, a larger val_fraction, or separate `val_paths`"
        )
    for unit, count in prepared.large_units.items():
        yield (
            f"unit {unit[:80]!r} holds {count} of {len(rows)} rows, and counts as one for privacy: if it is no single"
            " person or document, correct the field that `unit` names"
        )


def _group(row: Row) -> str:
    """Return the identity of a row's group: the given group, else the unit, else what relates its record to others."""
    if row.group is not None:
        return f"group:{row.group}"
    record = row.record
    return f"{record.feature}:{record.related_by}" if record.is_own_unit else f"unit:{record.unit}"


def _kind_of(rows: Sequence[Row], name: str) -> str:
    kinds = {row.record.feature for row in rows}
    if len(kinds) > 1:
        raise UserError(
            f"dataset {name} holds records of several kinds ({', '.join(sorted(kinds))}), and a stage learns from one"
            " kind: combine datasets of one `kind`"
        )
    return kinds.pop()


def _check_sides(prepared: Prepared, rows: Sequence[Row], *, settings: Source) -> None:
    """Refuse an empty side. Only a dataset that holds out all records may have no training records."""
    given = {row.side for row in rows}
    learns = settings.held_out_share() < 1 and not given <= {VAL, TEST}
    others = "give records for it that are not training records"
    for side, records, remedy in (
        (TRAIN, prepared.train or not learns, "give more groups of records, or lower val_fraction"),
        (VAL, prepared.val, others if VAL in given else "give more groups of records, or raise val_fraction"),
        (TEST, prepared.test is None or prepared.test, others),
    ):
        if not records:
            dropped = {"val": prepared.dropped_from_val, "test": prepared.dropped_from_test}
            counted = "".join(f", {count} dropped from {of}" for of, count in dropped.items() if count)
            raise UserError(
                f"dataset {prepared.name}: no record is on the {side} side of the split "
                f"({len(prepared.train)} train, {len(prepared.val)} val{counted}): {remedy}"
            )
