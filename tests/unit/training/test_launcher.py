"""The launcher of several processes: it passes signals on, returns one exit code, and leaves no process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.training.interruption import EXIT_INTERRUPTED
from sealed_experts.training.launcher import EXIT_PEER, EXIT_STOPPED
from tests.waiting import wait_for

LAUNCHER = Path(__file__).resolve().parents[3] / "scripts" / "sealed_experts" / "training" / "launcher.py"
# A process that reports its rank, unblocks signals when it is ready, and saves when it is asked to stop.
RANK = """
import os, signal, sys, time
rank, how = int(os.environ["RANK"]), sys.argv[1]
stopping = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
for number in stopping:
    signal.signal(number, lambda *_: sys.exit(76 if how == "error" else 75))
time.sleep(0.2)
with open(f"place-{rank}", "w") as stream:
    stream.write(f"{os.getpid()} {os.environ['WORLD_SIZE']} {os.environ['LOCAL_RANK']}")
print("rank", rank)
if how in ("0", "75"):
    sys.exit(int(how))
if how == "error" and rank == 1:
    sys.exit(3)
if how == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if how != "killed":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
time.sleep(60)
"""
# A process that checks whether it has to stop, as the training loop does.
LOOP = """
import os, time
from sealed_experts.training.interruption import Interruption
with Interruption() as interruption:
    with open(f"place-{os.environ['RANK']}", "w") as stream:
        stream.write(str(os.getpid()))
    while not interruption.reason:
        time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _terminal():
    """Reset SIGHUP: a process under `nohup` ignores it, and so would the processes of these tests."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


def start(folder, how, *, processes=2, before=(), program=RANK):
    (folder / "rank.py").write_text(program)
    return subprocess.Popen(
        [*before, sys.executable, LAUNCHER, "--processes", str(processes), "--", sys.executable, "rank.py", how],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(LAUNCHER.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready(folder, processes=2):
    return len([path for path in folder.glob("place-*") if path.stat().st_size]) == processes


def pids(folder):
    return [int(path.read_text().split()[0]) for path in sorted(folder.glob("place-*"))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("how", "code"), [("0", 0), ("75", 75), ("error", 3)])
def test_its_exit_code_is_that_of_the_job(tmp_path, how, code):
    process = start(tmp_path, how, processes=3)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == "rank 0\n"  # only the first process prints progress
    assert [path.read_text().split()[1:] for path in sorted(tmp_path.glob("place-*"))] == [
        ["3", "0"],
        ["3", "1"],
        ["3", "2"],
    ]
    assert not list(tmp_path.glob("sealed-experts-*"))


def test_a_killed_process_ends_the_others_even_where_they_hang(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    code = f"""import sys
from sealed_experts.training.launcher import launch
sys.exit(launch([{sys.executable!r}, "rank.py", "killed"], processes=2, grace_seconds=0.5))"""
    environment = {**os.environ, "PYTHONPATH": str(LAUNCHER.parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert "process 1 of this job was ended by SIGKILL" in done.stderr
    assert not any(map(alive, pids(tmp_path)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_reaches_every_process_and_75_comes_back(tmp_path, number):
    process = start(tmp_path, "wait")
    wait_for(lambda: ready(tmp_path), seconds=20)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == EXIT_STOPPED == EXIT_INTERRUPTED != EXIT_PEER
    assert "Traceback" not in err


def test_a_job_under_nohup_outlives_its_terminal(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start(tmp_path, "wait", program=LOOP)
    wait_for(lambda: ready(tmp_path), seconds=20)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0  # SIGTERM ends these processes normally
    assert ready(tmp_path)


def test_a_signal_that_comes_before_they_are_ready_is_not_lost(tmp_path):
    process = start(tmp_path, "wait")
    wait_for(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split(), seconds=20)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == EXIT_STOPPED
    assert ready(tmp_path)


@pytest.mark.parametrize("who", ["parent of the launcher", "launcher"])
def test_they_stop_when_what_started_them_is_killed(tmp_path, who):
    shell = ["sh", "-c", '"$@" & wait', "sh"] if who == "parent of the launcher" else []
    process = start(tmp_path, "", before=shell, program=LOOP)
    wait_for(lambda: ready(tmp_path), seconds=20)
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: not any(map(alive, pids(tmp_path))), seconds=20)


def test_it_says_what_it_needs(tmp_path):
    done = subprocess.run(
        [sys.executable, LAUNCHER, "--processes", "2", "--", "no-such-command"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "a command that exists" in done.stderr


def test_it_loads_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", LAUNCHER, "--help"], capture_output=True, text=True, check=True
    )
    assert "torch" not in done.stderr
