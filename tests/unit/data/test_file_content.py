"""What a file is, by its content, when its name says something else: it is read, or named in one line."""

import gzip
import io
import json
import tracemalloc
import zipfile
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.data.json_values import json_values
from sealed_experts.data.preparation import prepare
from sealed_experts.data.records.chat import Chat
from sealed_experts.data.rows import BadRow
from sealed_experts.data.sources import DATASET
from sealed_experts.data.sources.files import Files
from sealed_experts.errors import UserError

ROWS = [{"instruction": f"Frage {n} – möglich?", "output": f"Antwort {n}"} for n in range(6)]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in ROWS)


def workbook():
    """Return the beginning of an .xlsx file, which is a ZIP archive with these parts."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return made.getvalue()


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    dataset = Files(paths=(str(path),))
    bound = dataset.count_upper_bound({})
    rows = list(dataset.read())
    assert bound is None or bound >= len(rows)
    return rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", LINES.encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("utf16.jsonl", LINES.encode("utf-16")),
        ("zipped.jsonl", gzip.compress(LINES.encode(), mtime=0)),
        ("zipped.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("utf16 zipped.jsonl", gzip.compress(LINES.encode("utf-16"), mtime=0)),
        ("array.jsonl", json.dumps(ROWS).encode()),
        ("pretty array.jsonl", json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
        ("pretty.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
        ("blank.jsonl", b"\n\n" + LINES.replace("\n", "\n\n").encode()),
        ("table.csv", CSV.encode()),
        ("utf16.csv", CSV.encode("utf-16")),
        ("semicolons.csv", CSV.replace(",", ";").encode()),
        ("tabs.csv", CSV.replace(",", "\t").encode()),
        ("utf32.csv", CSV.encode("utf-32")),
        ("utf16 big endian.csv", b"\xfe\xff" + CSV.encode("utf-16-be")),
        ("bom array.jsonl", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("zipped array.jsonl", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("long objects.jsonl", "\n".join(json.dumps({"more": "x" * 90_000} | row, indent=2) for row in ROWS).encode()),
        ("zipped.csv", gzip.compress(CSV.encode(), mtime=0)),
        ("zipped.csv.GZ", gzip.compress(CSV.encode(), mtime=0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_clear_is_read(tmp_path, name, content):
    rows = read(tmp_path, name, content)
    found = [{"instruction": row.record.instruction, "output": row.record.output} for row in rows]
    assert found == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("x.csv", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page.*download the data file itself"),
        ("x.jsonl", b"\n  <html>", "an HTML page.*download the data file itself"),
        ("x.csv", b"PK\x03\x04rest", "ZIP archive: unpack it"),
        ("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook: save it in Excel"),
        ("x.jsonl", b"SQLite format 3\0", "SQLite database"),
        ("x.csv", b"%PDF-1.7", "a PDF"),
        ("x.csv", CSV.encode("utf-16-le"), "UTF-16 text without a byte order mark.*iconv -f UTF-16LE"),
        ("x.csv", gzip.compress(CSV.encode(), mtime=0)[:-9], "gzip file that is cut off or damaged"),
        ("x.csv", b"question;answer\nq;a\n", "separated by semicolons: save it with commas"),
        ("x.csv", b"question\tanswer\nq\ta\n", "separated by tabs"),
        ("x.csv", b"question|answer\nq|a\n", "separated by vertical bars"),
        ("x.csv", b"", "is empty: the first line of a CSV file names its columns"),
        ("x.csv", gzip.compress(gzip.compress(CSV.encode())), "compressed twice with gzip"),
        ("x.csv", LINES.encode(), "JSON, not csv: rename it to end in .jsonl"),
        ("x.csv", json.dumps(ROWS, indent=2).encode(), "JSON, not csv"),
        ("x.csv", workbook(), "an Excel workbook: save it in Excel"),
        ("x.csv", b"\0" * 9, "x.csv:1: a NUL byte"),
        ("x.csv", b"instruction,output\nq,a\0b\n", "x.csv:2: a NUL byte: this is no text file"),
        ("x.jsonl", CSV.encode(), r"no row begins with .*if it is CSV, rename it to end in .csv"),
        ("x.jsonl", b"/annex/objects/SHA256E-s1--0.jsonl", "git-annex pointer.*git annex get"),
        ("x.jsonl", b"<?xml version='1.0'?>", "an XML file"),
        ("x.jsonl", b"BZh91AY&SY", "compressed with bzip2"),
        ("x.jsonl", b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
        ("x.parquet", b"", "not a Parquet file"),
        ("x.parquet", LINES.encode(), "JSON, not parquet: rename it"),
        ("x.parquet", gzip.compress(b"PAR1"), "compressed with gzip: unpack it"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("x.jsonl", json.dumps(ROWS).encode()[:-9], r"x.jsonl:1: this is not JSON .*"),
        ("x.jsonl", json.dumps(ROWS, indent=2).encode() + b"\n7", "text after the end of the list"),
        ("x.jsonl", json.dumps(ROWS, indent=2).replace("},", "}", 1).encode(), r"x.jsonl:6: .*',' is missing"),
        ("x.jsonl", json.dumps(ROWS, indent=1)[:-2].encode(), "the list does not end: the file is cut off"),
        ("x.csv", b"\xff\xfea", "damaged UTF-16.*save it as UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_something_else_is_named_with_the_way_out(tmp_path, name, content, said):
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_parquet_file_by_another_name_is_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"x\.csv is a Parquet file: rename it to end in \.parquet"):
        read(tmp_path, "x.csv", (tmp_path / "x.csv").read_bytes())


@pytest.mark.parametrize(("name", "content"), [("x.csv", CSV), ("x.jsonl", LINES)])
def test_a_table_in_windows_1252_is_named(tmp_path, name, content):
    with pytest.raises(UserError, match=rf"{name}:\d: the byte 0x96 .*'–'.*may be Windows-1252: save the file"):
        read(tmp_path, name, content.encode("cp1252"))


def test_a_few_bytes_that_are_not_utf8_stay_bad_rows_of_their_lines(tmp_path):
    """Three of 400 lines, or some lines of a file that does hold UTF-8."""
    plain = [b"q,a"] * 397 + [b"q,\xe9"] * 3
    mixed = ["q,é".encode()] + [b"q,\xe9"] * 9
    for content, bad in ((plain, 3), (mixed, 9)):
        rows = read(tmp_path, "x.csv", b"\n".join([b"instruction,output", *content]))
        assert [row.reason for row in rows if isinstance(row, BadRow)] == ["not UTF-8"] * bad
    with pytest.raises(UserError, match="most of them are not UTF-8, and may be Windows-1252"):
        prepare(Files(paths=(str(tmp_path / "x.csv"),)), name="x", seed=1)


def test_a_line_that_is_no_json_stays_a_bad_row_of_its_line(tmp_path):
    rows = read(tmp_path, "x.jsonl", b"{broken\n" + LINES.encode())
    assert [type(row) for row in rows] == [BadRow] + [type(rows[1])] * 6
    assert (rows[0].line, rows[0].reason, rows[1].line) == (1, "not JSON", 2)


@pytest.mark.parametrize("content", [b"[1, 2]\n[3]\n", b'[{"a": 1}]\n{"b": 2}\n', b"7\n", b'{"a": 1} {"b": 2}\n'])
def test_lines_of_other_values_are_bad_rows_with_their_lines(tmp_path, content):
    rows = read(tmp_path, "x.jsonl", content)
    assert all(isinstance(row, BadRow) for row in rows)
    assert [row.line for row in rows] == list(range(1, content.count(b"\n") + 1))


def test_duplicate_keys_are_refused_in_an_array_too(tmp_path):
    rows = read(tmp_path, "x.jsonl", b'[{"instruction": "a", "instruction": "b", "output": "c"}]')
    assert isinstance(rows[0], BadRow)


def test_a_value_that_is_not_strict_is_a_bad_row_of_its_line(tmp_path):
    rows = read(tmp_path, "x.jsonl", json.dumps([{"a": float("nan")}, *ROWS], indent=2, ensure_ascii=False).encode())
    assert [(row.line, isinstance(row, BadRow)) for row in rows] == [(2, True)] + [(5 + 4 * n, False) for n in range(6)]


def test_a_large_list_was_read_into_memory(tmp_path):
    """One list of 40 MB in one line; the objects that are alive are one row's."""
    row = json.dumps({"instruction": "q", "output": "a" * 4000})
    with (tmp_path / "x.jsonl").open("w") as stream:
        stream.write("[" + row + f", {row}" * 9999 + "]")
    rows = Files(paths=(str(tmp_path / "x.jsonl"),)).read()
    next(rows)  # imports nothing any more
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows) == 9999
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=6),
    st.sampled_from([None, 1, 4]),
    st.integers(1, 9),
)
def test_any_list_is_read_as_pythons_own_parser_does(records, indent, chunk):
    text = json.dumps(records, indent=indent, ensure_ascii=bool(chunk % 2))
    with mock.patch("sealed_experts.data.json_values.CHUNK", chunk):
        found = list(json_values(io.StringIO(text), name="x", in_list=True))
    assert [value for _, value in found] == records
    starts = [line for line, _ in found]
    assert starts == sorted(starts)
    assert indent is None or len(set(starts)) == len(records)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_rows_that_hold_conversations_say_which_kind_they_are(tmp_path, name):
    turns = json.dumps([{"from": "human", "value": "Hi."}])
    table = 'conversations\n"' + turns.replace('"', '""') + '"\n'
    (tmp_path / name).write_text(table if name == "x.csv" else json.dumps({"conversations": json.loads(turns)}) + "\n")
    with pytest.raises(UserError, match=r"if `conversations` holds conversations, write `kind: chat`"):
        prepare(Files(paths=(str(tmp_path / name),)), name="x", seed=1)


def test_a_file_of_another_kind_is_a_mistake_before_the_first_job(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"PAR1")
    found = list(Files(paths=("x.csv",)).mistakes("d", {}, names=["d"], root=tmp_path))
    assert [(mistake.path, mistake.text) for mistake in found] == [
        (("datasets", "d", "paths", 0), "x.csv is a Parquet file: rename it to end in .parquet")
    ]


# Conversations


TURNS = [("human", "Hi."), ("gpt", "Hello."), ("human", "Why?"), ("gpt", "So.")]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_form_of_sharegpt_needs_no_mapping(tmp_path, suffix):
    turns = [{"from": who, "value": text} for who, text in TURNS]
    path = tmp_path / f"x{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps({"id": "1", "conversations": turns}) + "\n")
    elif suffix == ".csv":
        path.write_text('conversations\n"' + json.dumps(turns).replace('"', '""') + '"\n')
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"conversations": turns}]), path)
    (row,) = DATASET.parse({"source": "files", "paths": [str(path)], "kind": "chat"}).read()
    usual = [{"role": {"human": "user", "gpt": "assistant"}[who], "content": text} for who, text in TURNS]
    assert isinstance(row.record, Chat)
    assert row.record.content() == {"messages": usual}


def test_an_unknown_speaker_is_a_bad_row_that_says_what_is_right(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"conversations": [{"from": "bard", "value": "Hi."}]}) + "\n")
    (row,) = DATASET.parse({"source": "files", "paths": [str(tmp_path / "x.jsonl")], "kind": "chat"}).read()
    assert (row.line, row.reason) == (1, "wrong turns")
    assert row.detail == (
        "`conversations[0]` has the role 'bard', not human, gpt, user, assistant or system: correct it, or leave the"
        " conversation out"
    )
