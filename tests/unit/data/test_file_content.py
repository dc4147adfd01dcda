"""What a file is, by its content, when its name says something else: it is read, or named in one line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from sealed_experts.data.preparation import prepare
from sealed_experts.data.records.chat import Chat
from sealed_experts.data.rows import BadRow
from sealed_experts.data.sources import DATASET
from sealed_experts.data.sources.files import Files
from sealed_experts.errors import UserError

ROWS = [{"instruction": f"Frage {n} – möglich?", "output": f"Antwort {n}"} for n in range(6)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in ROWS)


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
        ("x.csv", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page or XML"),
        ("x.jsonl", b"\n  <html>", "web page or XML"),
        ("x.csv", b"PK\x03\x04rest", "ZIP archive or a spreadsheet.*export the sheet as CSV"),
        ("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old spreadsheet"),
        ("x.jsonl", b"SQLite format 3\0", "SQLite database"),
        ("x.csv", b"%PDF-1.7", "a PDF"),
        ("x.csv", CSV.encode("utf-16-le"), "zero bytes.*save it as UTF-8"),
        ("x.csv", gzip.compress(CSV.encode(), mtime=0)[:-9], "gzip and damaged or cut short"),
        ("x.csv", CSV.replace(",", ";").encode(), "separated by semicolons: save it with commas"),
        ("x.csv", CSV.replace(",", "\t").encode(), "separated by tabs"),
        ("x.csv", b"\xff\xfea", "begins like UTF-16 and is damaged"),
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
    with pytest.raises(UserError, match=r"x\.csv is a Parquet file: give it a name"):
        read(tmp_path, "x.csv", (tmp_path / "x.csv").read_bytes())


def test_a_table_in_windows_1252_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(CSV.encode("cp1252"))
    with pytest.raises(UserError, match=r"may be Windows-1252: save the file as UTF-8"):
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
    assert row.detail == "`conversations[0]` has the role 'bard', not human, gpt, user, assistant, system"
