"""Locks left behind: a stale one is no obstacle, a held one is named, and a place without locks is refused."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files import leases, locks
from sealed_experts.files.locks import folder_lock, is_locked
from tests.conftest import ROOT

ELSEWHERE = {"host": "node17", "pid": 4711, "slurm_job": "12345"}
# Holds a folder as a process of another host would, and tells when it does.
HOLDER = """
import json, os, sys, time
from sealed_experts.files import leases, locks
locks.describe_holder = lambda descriptor: os.pwrite(descriptor, sys.argv[2].encode(), 0)
with locks.folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder, described):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), described],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_file_left_by_another_host_holds_nobody_up(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps(ELSEWHERE))
    assert not is_locked(tmp_path)
    with folder_lock(tmp_path, wait_seconds=0):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize(
    ("described", "named"),
    [
        (json.dumps(ELSEWHERE), "process 4711 on node17, SLURM job 12345"),
        (json.dumps({**ELSEWHERE, "slurm_job": None}), "process 4711 on node17:"),
        ("", "another process"),
        ("[]", "another process"),
        ('"text"', "another process"),
    ],
)
def test_a_holder_on_another_host_is_named_and_its_death_frees_the_folder(tmp_path, described, named):
    process = holder(tmp_path, described)
    with pytest.raises(UserError, match="is in use by") as caught, folder_lock(tmp_path, wait_seconds=0.1):
        pass
    assert named in str(caught.value)
    process.kill()
    process.communicate()
    with folder_lock(tmp_path, wait_seconds=5):
        pass


def test_a_lock_on_a_full_disk_is_held_without_a_name(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="has no locks") as caught, locks.folder_lock(tmp_path):
        pass
    assert str(tmp_path) in str(caught.value)


# Holds a folder and a lock of a GPU's kind, and has a worker, as a user's reward may, that outlives it.
WITH_WORKER = """
import os, sys, time
from pathlib import Path
from sealed_experts.files import leases
from sealed_experts.files.locks import folder_lock

with folder_lock(sys.argv[1]), leases.file_lock(Path(sys.argv[1]) / "gpu.lock") as held:
    assert held
    ready, started = os.pipe()
    if os.fork() == 0:
        os.write(started, b".")
        sys.stdin.read()
        os._exit(0)
    os.read(ready, 1)
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_does_not_live_on_in_its_workers(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_WORKER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid}"), folder_lock(tmp_path, wait_seconds=0):
        pass
    process.kill()
    process.wait(timeout=20)
    with folder_lock(tmp_path, wait_seconds=0), leases.file_lock(tmp_path / "gpu.lock") as free:
        assert free
    process.stdin.close()  # the worker ends


def test_a_child_that_leaves_the_block_takes_nothing_from_its_parent(tmp_path):
    parent, child = os.getpid(), 0
    try:
        with folder_lock(tmp_path):
            child = os.fork()
            if child == 0:
                # As an exception does. The number of the lock's file may be another file's by now.
                with open(tmp_path / "other", "w+") as other:
                    other.write("x")
                    other.flush()
                    raise InterruptedError
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert is_locked(tmp_path)
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == parent
            assert (tmp_path / "other").read_text() == "x"
    except InterruptedError:
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)
