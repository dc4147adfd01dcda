"""Which unit a record belongs to: the scheme of a dataset's ids, and what a combination may hold out."""

import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from sealed_experts.data.preparation import Prepared, prepare, write_prepared
from sealed_experts.data.records.instruction import Instruction, InstructionColumns
from sealed_experts.data.rows import BadRow
from sealed_experts.data.sources.combined import Combined
from sealed_experts.data.sources.demo import Demo
from sealed_experts.data.sources.files import Files
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.mixture import JointPrivacy, Member, mixture_privacy

ROWS = [
    {
        "instruction": f"q{index}",
        "output": f"a{index}",
        "summary": f"s{index}",
        "customer": f"c{index % 50}",
        "doc": f"d{index % 60}",
        "record": f"r{index}",
    }
    for index in range(300)
]


class Desk:
    """A folder with one file of rows and the datasets that are prepared from it."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "rows.jsonl"
        self.write(ROWS)

    def write(self, rows):
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def files(self, name: str, **kwargs) -> Prepared:
        return self.kept(prepare(Files(paths=(str(self.file),), **kwargs), name=name, seed=1))

    def combined(self, name: str, *of: str) -> Prepared:
        parts = [self.folder / part for part in of]
        return self.kept(prepare(Combined(of=of), name=name, seed=1, parts=parts))

    def kept(self, prepared: Prepared) -> Prepared:
        paths = {key: self.folder / prepared.name / f"{key}.jsonl" for key in ("train", "val")}
        stats = self.folder / prepared.name / "stats.json"
        write_prepared(prepared, **paths, stats=stats, count_tokens=lambda texts: [1] * len(texts))
        return prepared


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def event(key: str) -> GaussianEvent:
    return GaussianEvent(stage="sft", noise_multiplier=1.0, sample_rate=0.1, steps=50, key_id=key)


def joint(*datasets: Prepared) -> JointPrivacy:
    members = [
        Member(name=d.name, events=(event(d.name),), units=frozenset(r.unit for r in d.train), unit=d.unit)
        for d in datasets
    ]
    return mixture_privacy(members, delta=1e-5)


def test_a_unit_field_called_record_is_not_the_record_itself(desk):
    plain, field = desk.files("plain"), desk.files("field", unit="record")
    assert (plain.unit, field.unit) == ("record", "field:record")
    assert joint(plain, field).epsilon is None


def test_the_unit_is_the_field_also_where_its_values_happen_to_be_the_ids(desk):
    for row in ROWS:
        row["own"] = Instruction.of(instruction=row["instruction"], output=row["output"]).id
    desk.write(ROWS)
    assert desk.files("own", unit="own").unit == "field:own"


def test_two_combinations_over_units_of_different_kinds_have_no_joint_epsilon(desk):
    desk.files("customers", unit="customer")
    desk.files("documents", unit="doc")
    assert joint(desk.combined("c", "customers"), desk.combined("d", "documents")).epsilon is None


def test_a_combination_of_parts_of_one_kind_composes_with_its_parts(desk):
    part = desk.files("customers", unit="customer")
    whole = desk.combined("all", "customers")
    assert whole.unit == "field:customer"
    assert read_json(desk.folder / "all" / "stats.json")["unit"] == "field:customer"
    both = epsilon([event("customers"), event("all")], delta=1e-5)
    assert joint(part, whole).epsilon == pytest.approx(both, rel=1e-12)


def test_a_combination_of_mixed_kinds_says_so(desk):
    desk.files("customers", unit="customer")
    desk.files("plain")
    mixed = desk.combined("both", "customers", "plain")
    assert mixed.unit == "mixed"
    assert desk.combined("again", "both", "plain").unit == "mixed"


def test_a_part_without_statistics_is_refused(desk):
    desk.files("plain")
    (desk.folder / "plain" / "stats.json").unlink()
    with pytest.raises(UserError, match=r"plain/stats\.json"):
        desk.combined("all", "plain")


def texts(records):
    return {(record.instruction, record.input, record.output) for record in records}


def test_a_combination_of_kinds_holds_out_no_text_that_it_trains_on(desk):
    desk.files("customers", unit="customer")
    desk.files("plain")
    both = desk.combined("both", "plain", "customers")
    assert both.val
    assert not texts(both.train) & texts(both.val)


def test_a_combination_of_two_splits_holds_out_no_question_that_it_trains_on(desk):
    few = desk.files("few", val_fraction=0.1)
    many = desk.files("many", val_fraction=0.4, fields=InstructionColumns(output="summary"))
    both = desk.combined("both", "few", "many")
    held_out = {record.question for record in both.val}
    assert held_out
    assert not held_out & {record.question for record in both.train}
    # The combination trains on what the parts train on: only held-out rows are dropped because of other rows.
    assert texts(both.train) == texts(few.train) | texts(many.train)
    assert both.dropped_from_val == len(few.val) + len(many.val) - len(both.val) > 0


def test_customers_who_ask_the_same_question_may_stand_on_both_sides(desk):
    desk.write([{"instruction": "balance?", "output": f"{n}", "customer": f"c{n}"} for n in range(60)])
    desk.files("customers", unit="customer", val_fraction=0.4)
    both = desk.combined("all", "customers")
    assert both.dropped_from_val == 0
    assert both.val


def test_removing_a_unit_of_a_part_moves_no_other_training_record_of_the_combination(desk):
    def trained(rows):
        desk.write(rows)
        desk.files("few", unit="customer", val_fraction=0.1)
        desk.files("many", unit="customer", val_fraction=0.4, group="doc")
        return {(record.unit, record.id) for record in desk.combined("both", "few", "many").train}

    everyone = trained(ROWS)
    for customer in ("c1", "c2", "c3"):
        less = trained([row for row in ROWS if row["customer"] != customer])
        assert less == {entry for entry in everyone if entry[0] != customer}


def test_groups_that_units_tear_apart_are_counted_and_told(desk):
    log = []
    rows = [
        {"instruction": f"q{i}", "output": "a", "customer": f"c{i % 200}", "contract": f"k{(i * 7) % 170}"}
        for i in range(600)
    ]
    desk.write(rows)
    source = Files(paths=(str(desk.file),), unit="customer", group="contract", val_fraction=0.2)
    torn = prepare(source, name="x", seed=1, log=log.append)
    of = {row["instruction"]: row["contract"] for row in rows}
    sides = [{of[record.instruction] for record in side} for side in (torn.train, torn.val)]
    assert torn.groups_on_both_sides == len(sides[0] & sides[1]) > 0
    (line,) = log
    assert f"{torn.groups_on_both_sides} groups" in line
    assert "unit" in line
    desk.files("torn", unit="customer", group="contract")
    assert read_json(desk.folder / "torn" / "stats.json")["groups_on_both_sides"] > 0


def test_nested_groups_are_on_no_two_sides(desk):
    desk.write([row | {"region": f"g{int(row['customer'][1:]) % 7}"} for row in ROWS])
    assert desk.files("nested", unit="customer", group="region", val_fraction=0.4).groups_on_both_sides == 0
    assert desk.files("record", group="doc").groups_on_both_sides == 0


def test_blanks_around_a_name_and_its_unicode_form_make_no_second_unit(desk):
    names = ["c1", "c1 ", "\tc1\n", "se\u00f1or", "sen\u0303or", "7"]
    desk.write([{"instruction": f"q{n}", "output": "a", "who": name} for n, name in enumerate([*names, 7])])
    rows = list(Files(paths=(str(desk.file),), unit="who", group="who").read())
    assert [row.record.unit for row in rows] == ["c1", "c1", "c1", "se\u00f1or", "se\u00f1or", "7", "7"]
    assert [row.group for row in rows] == [row.record.unit for row in rows]


def test_the_demo_is_of_records(desk):
    assert desk.kept(prepare(Demo(records=60), name="demo", seed=1)).unit == "record"


def parquet(path, damage):
    columns = {"instruction": [f"q{n}" * 50 for n in range(5000)], "output": [f"a{n}" for n in range(5000)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(200, 3000) if damage == "page" else range(footer, footer + 30):
        content[place] ^= 0xFF
    path.write_bytes(content)
    return Files(paths=(str(path),))


@pytest.mark.parametrize("damage", ["page", "footer"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    source = parquet(tmp_path / "a.parquet", damage)
    assert source.count_upper_bound({}) in (None, 5000)
    with pytest.raises(UserError, match=r"a\.parquet"):
        list(source.read())


def test_a_bad_parquet_value_is_still_one_bad_row(tmp_path):
    table = pyarrow.table({"instruction": ["q", None], "output": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [isinstance(row, BadRow) for row in Files(paths=(str(tmp_path / "a.parquet"),)).read()] == [
        False,
        True,
    ]


# Units torn apart, and units that are nobody


def rows_of(desk, values, **kwargs):
    desk.write([{"instruction": f"q{n}", "output": f"a{n}", "who": value} for n, value in enumerate(values)])
    return list(Files(paths=(str(desk.file),), unit="who", **kwargs).read())


def test_one_customer_is_one_unit_in_every_format(desk):
    """20 customers became 40 units: pandas writes whole numbers with gaps as 1001.0, and CSV has only text."""
    numbers = range(1001, 1021)
    values = [form(number) for number in numbers for form in (int, float, str, lambda n: f" {n}.0", "\ufeff{}".format)]
    assert [row.record.unit for row in rows_of(desk, values)] == [str(n) for n in numbers for _ in range(5)]
    table = pyarrow.table(
        {
            "instruction": ["q"] * 3,
            "output": ["a", "b", "c"],
            "who": pyarrow.array([1001.0, 7.0, 0.0], pyarrow.float64()),
            "sum": pyarrow.array([Decimal("1001.00"), Decimal(7), Decimal("-0.0")], pyarrow.decimal128(8, 2)),
        }
    )
    path = desk.folder / "rows.parquet"
    pyarrow.parquet.write_table(table, path)
    for column in ("who", "sum"):
        units = [row.record.unit for row in Files(paths=(str(path),), unit=column).read()]
        assert units == ["1001", "7", "0"]
    (desk.folder / "rows.csv").write_text("instruction,output,who\nq,a,1001\nq,b,1001.0\nq,c, 1001 \n")
    read = Files(paths=(str(desk.folder / "rows.csv"),), unit="who").read()
    assert {row.record.unit for row in read} == {"1001"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("007", 7),
        ("1e3", 1000),
        ("1001.5", "1001"),
        ("1.10", "1.1"),
        ("1.00", 1),
        ("c1", "C1"),
        ("9007199254740993", 9007199254740992),
    ],
)
def test_different_ids_stay_different(desk, one, other):
    units = [row.record.unit for row in rows_of(desk, [one, other])]
    assert units == [one, str(other)]


@pytest.mark.parametrize("value", [1001.5, 9007199254740994.0, 1e30, True, [1], {"a": 1}])
def test_a_unit_that_is_neither_text_nor_a_whole_number_is_refused(desk, value):
    (row,) = rows_of(desk, [value])
    assert isinstance(row, BadRow)
    assert row.reason == "wrong type"


@pytest.mark.parametrize(
    "value", ["nan", "NaN", "NULL", "None", "n/a", "unknown", "-", "", " ", "\u200b", None, "?", "<NA>"]
)
def test_a_placeholder_is_no_unit(desk, value):
    """All rows of unknown customers once were one giant unit."""
    (row,) = rows_of(desk, [value])
    assert isinstance(row, BadRow)
    assert row.reason == "no unit"
    assert "`missing_unit: own`" in row.detail
    first, second = rows_of(desk, [value, value], missing_unit="own")
    assert first.record.is_own_unit
    assert first.record.unit != second.record.unit


def test_rows_of_nobody_have_another_scheme_of_units():
    asked = Files(paths=("a.csv",), unit="who", missing_unit="own")
    assert asked.unit_scheme() == "field:who or record"
    assert asked.reading() != Files(paths=("a.csv",), unit="who").reading()


def test_a_unit_with_more_than_a_tenth_of_the_rows_is_named(desk):
    logged = []
    values = ["bot"] * 30 + [f"c{n}" for n in range(70)]
    desk.write([{"instruction": f"q{n}", "output": f"a{n}", "who": value} for n, value in enumerate(values)])
    prepared = prepare(
        Files(paths=(str(desk.file),), unit="who", val_fraction=0.3), name="x", seed=1, log=logged.append
    )
    assert prepared.large_units == {"bot": 30}
    (warning,) = logged
    assert "unit 'bot' holds 30 of 100 rows" in warning
    desk.kept(prepared)
    assert read_json(desk.folder / "x" / "stats.json")["large_units"] == {"bot": 30}
