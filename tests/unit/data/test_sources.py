"""Reading rows: every format, every kind of bad row with its file and line, and clear errors."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.data.records import write_records
from sealed_experts.data.records.instruction import Instruction, InstructionColumns
from sealed_experts.data.rows import BadRow, Row
from sealed_experts.data.sources.combined import Combined
from sealed_experts.data.sources.demo import Demo
from sealed_experts.data.sources.files import Files
from sealed_experts.data.sources.hub import Hub
from sealed_experts.errors import UserError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(lambda text: text.strip())
GOOD = {"instruction": "What is a bond?", "output": "A loan."}


def files(*paths, **kwargs):
    return Files(paths=tuple(map(str, paths)), **kwargs)


def rows_of(path, **kwargs):
    return list(files(path, **kwargs).read())


def jsonl(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )
    return path


def test_jsonl_reads_text_input_unit_and_group(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"q": "Why?", "ctx": "Rain.", "a": "Wet.", "who": 7, "doc": "d1"},
        {"q": "x", "a": "y", "who": "8", "doc": "d2"},
    )
    found = rows_of(path, fields=InstructionColumns(instruction="q", input="ctx", output="a"), unit="who", group="doc")
    assert found == [
        Row(str(path), 1, Instruction.of(instruction="Why?", input="Rain.", output="Wet.", unit="7"), group="d1"),
        Row(str(path), 2, Instruction.of(instruction="x", output="y", unit="8"), group="d2"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "not JSON"),
        (b'{"instruction": "a", "instruction": "b", "output": "c"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "wrong type"),
        (b'{"instruction": "a"}', "missing field"),
        (b'{"instruction": "a", "output": null}', "missing field"),
        (b'{"instruction": "a", "output": "  \\n"}', "empty field"),
        (b'{"instruction": "", "output": "a"}', "empty field"),
        (b'{"instruction": "a", "output": 5}', "wrong type"),
        (b'{"instruction": "a", "input": ["x"], "output": "b"}', "wrong type"),
        (b'{"instruction": "a", "output": "\xff"}', "not UTF-8"),
        (b'{"instruction": "a", "output": "\\ud800"}', "not UTF-8"),
    ],
)
def test_jsonl_bad_line_is_reported_with_its_line_and_the_rest_is_read(tmp_path, line, reason):
    path = jsonl(tmp_path / "a.jsonl", GOOD, b"", line, GOOD)
    first, bad, last = rows_of(path)
    assert (bad.file, bad.line, bad.reason) == (str(path), 3, reason)
    assert (first.line, last.line) == (1, 4)


@pytest.mark.parametrize("value", [None, True, 1.5, "", ["x"]])
def test_unit_must_be_a_name(tmp_path, value):
    (bad,) = rows_of(jsonl(tmp_path / "a.jsonl", GOOD | {"who": value}), unit="who")
    assert isinstance(bad, BadRow)
    assert "`who`" in bad.detail


def test_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfinstruction,output\r\nq,a\r\n")
    assert isinstance(rows_of(tmp_path / "a.jsonl")[0], Row)
    assert rows_of(tmp_path / "a.csv") == [Row(str(tmp_path / "a.csv"), 2, Instruction.of(instruction="q", output="a"))]


def test_csv_counts_lines_through_quoted_newlines_and_goes_on_after_bad_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'instruction,output\n"two\nlines",a\nonly one\nq,\xff\nq,\n\nq,last\n')
    found = rows_of(path)
    assert [(row.line, getattr(row, "reason", "good")) for row in found] == [
        (2, "good"), (4, "wrong number of fields"), (5, "not UTF-8"), (6, "empty field"), (8, "good"),
    ]  # fmt: skip
    assert found[0].record.instruction == "two\nlines"


def test_csv_open_quote_is_reported_where_it_starts(tmp_path):
    (tmp_path / "a.csv").write_text('instruction,output\nq,a\n"open,a\nq,b\n')
    with pytest.raises(UserError, match=r"a\.csv:3: this is not CSV"):
        rows_of(tmp_path / "a.csv")


def test_parquet_rows(tmp_path):
    table = pyarrow.table({"instruction": ["q", "q", None], "output": ["a", " ", "c"], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = rows_of(tmp_path / "a.parquet")
    assert [(row.line, getattr(row, "reason", "good")) for row in found] == [
        (1, "good"),
        (2, "empty field"),
        (3, "missing field"),
    ]


def test_parquet_bytes_that_are_not_utf8(tmp_path):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xffa")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["q", "q"], "output": broken}), tmp_path / "a.parquet")
    bad, good = rows_of(tmp_path / "a.parquet")
    assert (bad.line, bad.reason) == (1, "not UTF-8")
    assert good.record.output == "a"


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_missing_column_names_those_there_are(tmp_path, name):
    if name == "a.csv":
        (tmp_path / name).write_text("question,output\nq,a\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"question": ["q"], "output": ["a"]}), tmp_path / name)
    with pytest.raises(UserError, match=r"no column 'instruction' \(it has 'question', 'output'\)"):
        rows_of(tmp_path / name)
    mapped = InstructionColumns(instruction="question", input="typo")
    with pytest.raises(UserError, match="no column 'typo'"):
        rows_of(tmp_path / name, fields=mapped)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        rows_of(tmp_path / "none.jsonl")
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        rows_of(tmp_path / "a.parquet")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(tmp_path / "folder.csv")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), TEXT), max_size=5))
def test_any_text_survives_jsonl_and_csv(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("rows")
    names = ("instruction", "input", "output")
    (folder / "a.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, record, strict=True))) + "\n" for record in records)
    )
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows([names, *records])
    (folder / "a.csv").write_bytes(stream.getvalue().encode())
    expected = [(ask, context if context.strip() else "", answer) for ask, context, answer in records]
    for name in ("a.jsonl", "a.csv"):
        assert [
            (row.record.instruction, row.record.input, row.record.output) for row in rows_of(folder / name)
        ] == expected
        assert files(folder / name).count_upper_bound({}) >= len(records)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), ending=st.sampled_from([".jsonl", ".csv", ".parquet"]))
def test_no_bytes_make_a_reader_fail_otherwise_than_by_a_message(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"a{ending}"
    path.write_bytes(content)
    bound = files(path).count_upper_bound({})
    try:
        found = rows_of(path)
    except UserError:
        return
    assert bound is None or bound >= sum(isinstance(row, Row) for row in found)


def test_bounds(tmp_path):
    one = files(jsonl(tmp_path / "a.jsonl", GOOD, GOOD))
    demo = Demo(records=70)
    hub = Hub(path="x/y", revision="0" * 40)
    assert demo.count_upper_bound({}) == 70
    assert hub.count_upper_bound({}) is None
    assert files(tmp_path / "none.jsonl").count_upper_bound({}) is None
    both = Combined(of=("one", "demo"))
    assert both.count_upper_bound({"one": one, "demo": demo}) == 72
    assert both.count_upper_bound({"one": hub, "demo": demo}) is None


def test_hub_reads_through_the_datasets_library(tmp_path):
    jsonl(tmp_path / "train.jsonl", GOOD | {"extra": 1}, {"instruction": "q", "output": ""})
    found = list(Hub(path=str(tmp_path), revision="0" * 40).read())
    assert [(row.line, getattr(row, "reason", "good")) for row in found] == [(1, "good"), (2, "empty field")]
    with pytest.raises(UserError, match="no column 'q'"):
        list(Hub(path=str(tmp_path), revision="0" * 40, fields=InstructionColumns(instruction="q")).read())
    with pytest.raises(UserError, match="test"):
        list(Hub(path=str(tmp_path), revision="0" * 40, split="test").read())


def test_hub_failures_say_which(monkeypatch):
    import datasets

    source = Hub(path="owner/data", revision="0" * 40)
    for error, message in [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/data' doesn't exist on the Hub"),
            "no dataset 'owner/data'",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'owner/data' is a gated dataset on the Hub."), "gated"),
        (ConnectionError("Couldn't reach 'owner/data' on the Hub (LocalEntryNotFoundError)"), "cannot be reached"),
    ]:
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, error=error, **kwargs: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match=message):
            list(source.read())


def test_combined_reads_the_parts_it_names_in_their_order(tmp_path):
    for name in ("one", "two"):
        for side in ("train", "val"):
            record = Instruction.of(instruction=f"{name} {side}?", output="x", unit=name)
            write_records(tmp_path / name / f"{side}.jsonl", [record])
    parts = [tmp_path / "one", tmp_path / "two"]
    found = list(Combined(of=("two", "one")).read(parts=parts))
    named = [(row.record.instruction, row.side, row.record.unit) for row in found]
    assert named == [(f"{name} {side}?", side, name) for side in ("train", "val") for name in ("two", "one")]
    with pytest.raises(UserError, match="got the folders"):
        list(Combined(of=("two",)).read(parts=parts))
