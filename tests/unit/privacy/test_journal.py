"""The journal: a crash at any byte must not lose a step that was on disk."""

import errno
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.journal import Journal

RUN = {"fingerprint": "f" * 64, "key_id": "k" * 32}


def write(path, steps, **more):
    with Journal.open(path, **RUN, **more) as journal:
        for step in steps:
            journal.record(step)
    return path.read_bytes()


def test_steps_are_counted_as_a_set(tmp_path):
    with Journal.open(tmp_path / "journal", **RUN) as journal:
        for step in (1, 2, 3, 2, 3, 4):
            journal.record(step)
        assert (journal.steps, journal.next_step) == (4, 5)
    with Journal.open(tmp_path / "journal", **RUN) as journal:
        assert journal.steps == 4
        journal.record(1)
        journal.record(5)
        assert journal.steps == 5


def test_a_step_is_on_disk_when_record_returns(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    synced = []
    sync = os.fsync
    with Journal.open(path, **RUN) as journal:
        monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(path.read_bytes()), sync(descriptor)))
        journal.record(1)
    assert len(synced) == 1
    assert synced[0].endswith(b'\n{"step":1}\n')


def test_the_journal_is_private(tmp_path):
    write(tmp_path / "journal", [1])
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o600


def test_a_new_key_may_go_on_in_the_middle(tmp_path):
    write(tmp_path / "journal", [7, 8], first_step=7)
    with Journal.open(tmp_path / "journal", **RUN) as journal:
        assert (journal.steps, journal.next_step) == (2, 9)


@pytest.mark.parametrize("step", [0, 3, 100, -1])
def test_a_gap_is_a_defect_of_the_caller(tmp_path, step):
    with Journal.open(tmp_path / "journal", **RUN) as journal:
        journal.record(1)
        with pytest.raises(ValueError, match="cannot be recorded next"):
            journal.record(step)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), steps=st.integers(1, 11))
def test_no_truncation_loses_a_step_and_the_journal_goes_on(tmp_path_factory, data, steps):
    path = tmp_path_factory.mktemp("journal") / "journal"
    whole = write(path, range(1, steps + 1))
    header = whole.index(b"\n") + 1
    cut = data.draw(st.integers(header, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[header:cut].count(b"\n")
    torn = not whole[:cut].endswith(b"\n")
    with Journal.open(path, **RUN) as journal:
        assert journal.steps == complete + torn
        for step in range(1, steps + 1):  # the run starts again from its first checkpoint
            journal.record(step)
        assert journal.steps == steps
    assert path.read_bytes() == whole


@settings(max_examples=30, deadline=None)
@given(tail=st.binary(min_size=1, max_size=12).filter(lambda tail: b"\n" not in tail))
def test_whatever_a_torn_line_holds_it_counts_and_is_mended(tmp_path_factory, tail):
    """After a power loss, some file systems leave zeros in place of an unfinished write."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    whole = write(path, [1, 2])
    path.write_bytes(whole + tail)
    for _ in range(2):
        with Journal.open(path, **RUN) as journal:
            assert journal.steps == 3
    assert write(path, [3, 4]) == whole + b'{"step":3}\n{"step":4}\n'


def test_a_header_without_its_end_is_refused(tmp_path):
    """The file was created with its complete header, so someone cut it, and may have cut steps too."""
    path = tmp_path / "journal"
    whole = write(path, [1])
    header = whole.index(b"\n")
    for cut in range(header + 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="line 1 is not the header"):
            Journal.open(path, **RUN)


@pytest.mark.parametrize(("name", "value"), [("fingerprint", "0" * 64), ("key_id", "0" * 32)])
def test_the_journal_of_another_run_is_refused(tmp_path, name, value):
    write(tmp_path / "journal", [1])
    with pytest.raises(UserError, match=f"belongs to another run: its {name}"):
        Journal.open(tmp_path / "journal", **{**RUN, name: value})


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([b'{"step":1}', b"garbage", b'{"step":3}'], 3),
        ([b'{"step":1}', b'{"step":1}'], 3),
        ([b'{"step":2}'], 2),
        ([b'{"step":1}', b"", b'{"step":2}'], 3),
        ([b'{"step":1}{"step":2}'], 2),
        ([b'{"step":1}', b'{"step":"2"}'], 3),
        ([b"\xff\xfe"], 2),
    ],
)
def test_an_altered_line_is_refused_by_its_number(tmp_path, lines, number):
    header = write(tmp_path / "journal", [])
    (tmp_path / "journal").write_bytes(header + b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=f"line {number} should be"):
        Journal.open(tmp_path / "journal", **RUN)


def test_a_full_disk_stops_the_run_and_the_step_still_counts(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    write_bytes = os.write
    with Journal.open(path, **RUN) as journal:
        journal.record(1)
        monkeypatch.setattr(os, "write", lambda descriptor, line: write_bytes(descriptor, line[:4]))
        with pytest.raises(UserError, match="no space left"):
            journal.record(2)
        with pytest.raises(ValueError, match="closed"):
            journal.record(2)
    monkeypatch.undo()
    with Journal.open(path, **RUN) as journal:
        assert journal.steps == 2


def test_a_disk_that_refuses_the_flush_stops_the_run(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.open(tmp_path / "journal", **RUN) as journal:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match="no space left"):
            journal.record(1)
        assert journal.steps == 0


def test_a_closed_journal_takes_nothing(tmp_path):
    journal = Journal.open(tmp_path / "journal", **RUN)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.record(1)
