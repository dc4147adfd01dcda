"""The fault harness sees what it has to see: a program that forgets a sync, a journal line or a rename is caught."""

import os
import random
import signal
from types import SimpleNamespace

import pytest

from sealed_experts.files.atomic import append_text, make_folder, write_bytes
from tests.faults.forks import Fault, choose_faults, run_forked
from tests.faults.jobs import JobTrials
from tests.faults.points import Operation
from tests.faults.powerloss import NAMES_FIRST, SHOWN, STRICT, Recorder, after_loss, recorded
from tests.faults.trials import Failed


def record(tmp_path, work):
    """Run `work` in an empty folder; return that folder as it was and the operations that were seen."""
    folder, start = tmp_path / "folder", tmp_path / "start"
    for path in (folder, start):
        path.mkdir()

    def in_folder():
        work()
        return 0

    end = run_forked(in_folder, folder=folder, log=tmp_path / "log", visit=Recorder(tmp_path / "record"))
    assert end.code == 0, (tmp_path / "log").read_text()
    return start, recorded(tmp_path / "record"), folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_operation_of_a_write_is_seen_by_name(tmp_path):
    _, operations, _ = record(tmp_path, lambda: write_bytes("new/step_12.pt", b"x" * 10))
    assert [operation.name for operation in operations] == [
        "folder new",
        "sync .",
        "create new/.step_#.pt.tmp",
        "write new/.step_#.pt.tmp",
        "sync new/.step_#.pt.tmp",
        "rename new/step_#.pt",
        "sync new",
    ]


def test_the_end_of_the_replay_is_the_folder_itself(tmp_path):
    def work():
        make_folder_and_files()
        os.unlink("old")

    def make_folder_and_files():
        for text in ("first\n", "second\n"):
            append_text("lines", text)
        write_bytes("a/b/c", b"1")
        write_bytes("a/b/c", b"22")
        write_bytes("old", b"3")
        with open("plain", "wb") as stream:
            stream.write(b"4")
            os.fsync(stream.fileno())

    start, operations, folder = record(tmp_path, work)
    after_loss(start, operations, count=len(operations), model=SHOWN, folder=tmp_path / "shown")
    assert content(tmp_path / "shown") == content(folder)


def test_at_every_moment_an_atomic_write_leaves_the_old_file_or_the_new_one(tmp_path):
    def work():
        write_bytes("file", b"old")
        write_bytes("file", b"new")

    start, operations, _ = record(tmp_path, work)
    for model in (STRICT, NAMES_FIRST):
        seen = []
        for count in range(len(operations) + 1):
            after_loss(start, operations, count=count, model=model, folder=tmp_path / "left")
            seen.append(content(tmp_path / "left").get("file"))
        assert set(seen) == {None, b"old", b"new"}
        assert seen == sorted(seen, key=[None, b"old", b"new"].index)  # never back


@pytest.mark.parametrize("model", [STRICT, NAMES_FIRST])
def test_a_rename_without_a_sync_is_caught(tmp_path, model):
    def careless():
        with open("draft", "wb") as stream:
            stream.write(b"content")
        os.replace("draft", "file")

    start, operations, _ = record(tmp_path, careless)
    after_loss(start, operations, count=len(operations), model=model, folder=tmp_path / "left")
    assert content(tmp_path / "left").get("file") == (None if model == STRICT else b"")


def test_a_new_folder_whose_name_is_not_synced_is_lost_with_all_in_it(tmp_path):
    def careless():
        os.mkdir("run")
        write_bytes("run/key", b"k")

    start, operations, _ = record(tmp_path, careless)
    after_loss(start, operations, count=len(operations), model=STRICT, folder=tmp_path / "left")
    assert content(tmp_path / "left") == {}


def test_an_append_without_a_sync_is_lost(tmp_path):
    start, operations, _ = record(tmp_path, lambda: (make_folder_of("a"), append_text("a/lines", "one\n")))
    after_loss(start, operations, count=len(operations), model=STRICT, folder=tmp_path / "left")
    assert content(tmp_path / "left") == {}


def make_folder_of(name):
    from pathlib import Path

    make_folder(Path(name))


def test_a_child_is_killed_just_where_the_fault_says(tmp_path):
    fault = Fault(number=7, when="after", name="write .file.tmp", signal=signal.SIGKILL)
    folder = tmp_path / "folder"
    folder.mkdir()

    def work():
        write_bytes("file", b"old")  # create, write, sync, rename, sync of the folder: points 0 to 9
        return 0

    end = run_forked(work, folder=folder, log=tmp_path / "log", visit=fault.visitor())
    assert end.signal == signal.SIGKILL
    assert content(folder) == {"file": b"old"}  # after the rename, before the folder's sync
    fault = Fault(number=3, when="after", name="write .file.tmp", signal=signal.SIGKILL)
    (folder / "file").unlink()
    run_forked(work, folder=folder, log=tmp_path / "log", visit=fault.visitor())
    assert [name for name in content(folder) if name.endswith(".tmp")]
    assert "file" not in content(folder)


def test_every_name_is_chosen_before_one_is_chosen_again():
    points = [("before", "sync a"), ("after", "sync a")] * 50 + [("before", "rename b")]
    faults = choose_faults(points, count=6, signals=[signal.SIGKILL], random_=random.Random(0))
    assert {(fault.when, fault.name) for fault in faults[:3]} == set(points)
    assert {(fault.when, fault.name) for fault in faults[3:]} == set(points)
    for fault in faults:
        assert points[fault.number] == (fault.when, fault.name)


def test_names_do_not_depend_on_the_run():
    one = Operation(kind="write", path=f"x/{'0f' * 32}/.checkpoint_step_12.pt.{'ab' * 8}.tmp")
    other = Operation(kind="write", path=f"x/{'9c' * 32}/.checkpoint_step_7.pt.{'01' * 8}.tmp")
    assert one.name == other.name == "write x/*/.checkpoint_step_#.pt.tmp"


@pytest.mark.parametrize("careful", [True, False])
def test_a_package_that_is_there_before_its_release_is_caught(tmp_path, careful):
    folder, home = tmp_path / "top" / "whole", tmp_path / "top" / "home"
    folder.mkdir(parents=True)
    release, package = home / "releases" / "expert" / "1.json", folder / "packages" / "expert.tgsp"

    def work():
        for path in (release, package) if careful else (package, release):
            write_bytes(path, b'{"entered": 1}')
        return 0

    job = SimpleNamespace(name="sealing", work=work, output=package, project=SimpleNamespace(folder=folder, home=home))
    work()
    trials = JobTrials(job, scratch=tmp_path)
    assert {operation.kind for operation in trials.operations} >= {"write", "sync", "rename"}
    caught = 0
    for count in range(len(trials.operations) + 1):
        try:
            trials.after_power_loss(count=count, model=STRICT)
        except Failed:
            caught += 1
    assert (caught == 0) is careful
