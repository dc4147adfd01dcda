"""Writing and reading files: modes, unreadable places, and JSON that only some parsers would read."""

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from sealed_experts.data.records import read_records
from sealed_experts.errors import UserError
from sealed_experts.files import atomic
from sealed_experts.files.atomic import append_text, atomic_writer, make_folder, write_bytes, write_text
from sealed_experts.files.canonical import read_json, strict_json
from sealed_experts.files.locks import folder_lock, is_locked
from tests.conftest import ROOT

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")


@pytest.mark.parametrize(
    ("umask", "wished", "expected"),
    [("022", 0o644, 0o644), ("077", 0o644, 0o600), ("027", 0o644, 0o640), ("022", 0o600, 0o600)],
)
def test_a_written_file_keeps_what_the_users_umask_takes_away(tmp_path, umask, wished, expected):
    program = (
        f"import os; os.umask(0o{umask}); from sealed_experts.files.atomic import write_bytes; "
        f"write_bytes('made', b'x', mode={wished})"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "scripts")}, check=True)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == expected


def test_many_writers_of_one_file_leave_one_whole_file_and_nothing_else(tmp_path):
    contents = [bytes([65 + number]) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(TypeError), atomic_writer(tmp_path / "a") as stream:
        stream.writelines([b"new", "no bytes"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (write_text, append_text):
        with pytest.raises(UserError, match=r"cannot write .*file/below/a"):
            write(tmp_path / "file" / "below" / "a", "x")
    with pytest.raises(UserError, match=r"cannot write .*file"), folder_lock(tmp_path / "file"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder"):
        write_text(tmp_path / "folder", "x")


def test_the_name_of_every_new_folder_is_synced(tmp_path, monkeypatch):
    """It was not: a loss of power could take a run's folder, key and journal away, though its steps had been seen."""
    synced = []
    monkeypatch.setattr(atomic, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 3


@as_user
def test_a_folder_below_a_read_only_one_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot write .*closed/new/a"):
        write_text(tmp_path / "closed" / "new" / "a", "x")
    with pytest.raises(UserError, match=r"cannot write .*closed"), folder_lock(tmp_path / "closed" / "new"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    # What a read-only file system says, whoever asks.
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write .*new/a \(Permission denied\)"):
        write_text(tmp_path / "new" / "a", "x")
    with pytest.raises(UserError, match=r"cannot write .*new"), folder_lock(tmp_path / "new"):
        pass


def test_a_lock_is_seen_while_it_is_held(tmp_path):
    assert not is_locked(tmp_path)
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "fifo", "folder", "socket"])
def test_a_lock_is_a_regular_file_and_nothing_else_is_opened(tmp_path, kind):
    """It once followed a symlink, and truncated what that led to."""
    (tmp_path / "victim").write_text("mine")
    folder = tmp_path / "locked"
    folder.mkdir()
    path = folder / ".lock"
    with contextlib.ExitStack() as opened:
        if "symlink" in kind:
            path.symlink_to(tmp_path / ("none" if "dangling" in kind else "victim"))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            opened.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(path))
        with pytest.raises(UserError, match=r"\.lock .*remove") as caught, folder_lock(folder):
            pass
        assert "\n" not in str(caught.value)
        if kind != "folder":
            with pytest.raises(UserError, match=r"\.lock .*remove"):
                is_locked(folder)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "1e999", "[-1e999]", '{"a": 1.0e400}', "NaN", "Infinity", '{"a": 1, "a": 1}', "1" * 5000],
    ids=["deep", "1e999", "-1e999", "1.0e400", "NaN", "Infinity", "twice", "digits"],
)
def test_json_that_only_some_parsers_would_read_is_a_value_error(tmp_path, text):
    with pytest.raises(ValueError):  # noqa: PT011 (the parser's own words)
        strict_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_numbers_are_read_as_any_reader_does():
    text = "[1.5, -0.0, 1e308, 2e-400, 12, 1E2]"
    assert strict_json(text) == json.loads(text)


@pytest.mark.parametrize("read", [read_json, read_records])
def test_a_file_that_cannot_be_read_is_named(tmp_path, read, monkeypatch):
    with pytest.raises(UserError, match=r"a\.json does not exist"):
        read(tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*folder"):
        read(tmp_path / "folder")

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.json \(Permission denied\)"):
        read(tmp_path / "a.json")
