"""CSV with wrong quotes: ambiguous rows never become a record of some unit."""

import csv
import io

import pytest

from sealed_experts.data.preparation import prepare
from sealed_experts.data.rows import BadRow, Row
from sealed_experts.data.sources.files import Files
from sealed_experts.errors import UserError

HEADER = "instruction,input,output,customer"


def lines(number=500):
    return [f"question {index},,answer {index},c{index}" for index in range(number)]


def rows_of(tmp_path, content, **kwargs):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else "\n".join([HEADER, *content, ""]).encode())
    return list(Files(paths=(str(path),), **kwargs).read())


def test_an_unclosed_quote_does_not_lose_the_rest_of_the_file(tmp_path):
    broken = lines()
    broken[200] = 'question 200,,"answer 200,c200'
    with pytest.raises(UserError, match=r"a\.csv:202: .*unexpected end of data.*202 to 501"):
        rows_of(tmp_path, broken)


def test_text_after_a_closing_quote_fails_the_dataset(tmp_path):
    broken = lines()
    broken[200] = '"question 200,,answer 200,c200'
    broken[450] = '"question 450,,answer 450,c450'
    with pytest.raises(UserError, match=r"a\.csv:202: "):
        rows_of(tmp_path, broken)


@pytest.mark.parametrize("last", [202, 203, 450])
def test_rows_swallowed_between_two_stray_quotes_are_no_record_of_the_last_unit(tmp_path, last):
    broken = lines()
    broken[200] = '"question 200,,answer 200,c200'
    broken[last] = f'question {last}",,answer {last},c{last}'
    found = rows_of(tmp_path, broken, unit="customer")
    longest = max(len(row.record.instruction) for row in found if isinstance(row, Row))
    if last - 200 >= 3:
        bad = [row for row in found if isinstance(row, BadRow)]
        assert [row.line for row in bad] == list(range(202, last + 3))
        assert {row.reason for row in bad} == {"rows inside quotes"}
        assert longest < 20
        assert len(found) == 500
    else:
        assert longest > 20  # three lines or fewer may be one text: see docs/data.md


def test_a_swallowed_region_with_a_bad_row_in_it_is_still_seen(tmp_path):
    broken = lines()
    broken[200], broken[300] = '"question 200,,answer 200,c200', "no row at all"
    broken[450] = 'question 450",,answer 450,c450'
    assert sum(isinstance(row, BadRow) for row in rows_of(tmp_path, broken)) == 251


def test_every_line_of_a_record_with_a_wrong_number_of_fields_counts_as_bad(tmp_path):
    broken = lines()
    broken[200], broken[450] = '"question 200,,answer 200,c200', 'question 450,,answer 450,c450"'
    bad = [row for row in rows_of(tmp_path, broken) if isinstance(row, BadRow)]
    assert len(bad) == 251
    with pytest.raises(UserError, match="251 of 500 rows cannot be used"):
        prepare(Files(paths=(str(tmp_path / "a.csv"),)), name="x", seed=1)


def test_a_field_beyond_the_csv_modules_limit_is_read_whole(tmp_path):
    long = "x" * 140_000 + "\nfoo,,evil,c9\nbar"
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(["q", "", long, "c1"])
    found = rows_of(tmp_path, f"{HEADER}\n{stream.getvalue()}q2,,a2,c2\n".encode())
    assert [(row.line, row.record.output) for row in found] == [(2, long), (5, "a2")]


def test_prose_of_many_lines_with_commas_is_a_record(tmp_path):
    prose = "First, look.\nThen, if it is there, take it.\nElse go on.\n\nLast, stop."
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(["q", prose, prose, "c1"])
    (row,) = rows_of(tmp_path, f"{HEADER}\n{stream.getvalue()}".encode())
    assert (row.record.input, row.record.output) == (prose, prose)


def test_line_ends_of_another_system_outside_quotes_fail_the_dataset(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv:1"):
        rows_of(tmp_path, "\r".join([HEADER, *lines(3)]).encode())
    assert len(rows_of(tmp_path, "\r\n".join([HEADER, *lines(3)]).encode())) == 3
