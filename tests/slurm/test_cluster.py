"""The tests' own cluster: it leaves nothing running, and says why where it cannot run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import conftest
from tests.slurm.cluster import Cluster
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
STARTS_AND_WAITS = """
import signal, sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
with Cluster(Path(sys.argv[1])) as cluster:
    cluster.run("sbatch", "--wrap=sleep 600", "--output=/dev/null")
    print("running", flush=True)
    time.sleep(600)
"""


def processes(folder):
    """The programs of a cluster in `folder` that run: daemons, the managers of jobs, and the jobs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            files = [os.readlink(link) for link in (entry / "fd").iterdir()]
            if os.fsencode(folder) in environment or any(name.startswith(str(folder)) for name in files):
                found.append(os.path.basename(os.readlink(entry / "exe")))
        except OSError:
            continue
    return {name.removesuffix("-wlm") for name in found if not name.startswith("python")}


RUNNING = {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"}


def test_a_cluster_ends_with_a_test_that_fails(slurm, tmp_path):
    folder = tmp_path / "cluster"

    def fails():
        with Cluster(folder) as cluster:
            cluster.run("sbatch", "--wrap=sleep 600", "--output=/dev/null")
            wait_for(lambda: processes(folder) >= RUNNING, seconds=30)
            raise KeyError("of a test")

    with pytest.raises(KeyError, match="of a test"):
        fails()
    assert processes(folder) == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_cluster_ends_with_tests_that_are_killed(slurm, tmp_path, number):
    folder = tmp_path / "cluster"
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "running\n"
            wait_for(lambda: processes(folder) >= RUNNING, seconds=30)
            process.send_signal(number)
            process.wait(timeout=60)
        finally:
            process.kill()
    wait_for(lambda: processes(folder) == set(), seconds=30)


def test_what_is_missing_is_named_where_it_may_not_be_installed(monkeypatch):
    monkeypatch.setattr(conftest, "missing_programs", lambda: ["munged", "slurmctld"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    reason = conftest.obstacle()
    assert "munged, slurmctld missing" in reason
    assert "only root may install them: sudo apt-get install slurm-wlm munge" in reason


def test_a_system_without_apt_is_named(monkeypatch):
    monkeypatch.setattr(conftest, "missing_programs", lambda: ["munged"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no apt-get" in conftest.obstacle()


@pytest.mark.parametrize(("skip", "outcome"), [("", "failed=1"), ("1", "skipped=1")])
def test_tests_that_cannot_run_fail_unless_told_to_skip(pytester_run, skip, outcome):
    assert outcome in pytester_run({conftest.SKIP: skip})


@pytest.fixture
def pytester_run(tmp_path):
    """Run a test that asks for SLURM on a machine without it, and return the counts."""

    def run(environment):
        (tmp_path / "test_it.py").write_text(
            "import shutil\n"
            "from tests.slurm import conftest\n"
            "from tests.slurm.conftest import slurm\n"
            "conftest.missing_programs = lambda: ['munged']\n"
            "shutil.which = lambda *_, **__: None\n"
            "def test_it(slurm): pass\n"
        )
        counts = "def pytest_terminal_summary(terminalreporter):\n    s = terminalreporter.stats\n"
        counts += "    print('failed=%d skipped=%d' % (len(s.get('error', [])), len(s.get('skipped', []))))\n"
        (tmp_path / "conftest.py").write_text(counts)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path / "test_it.py")]
        variables = {**os.environ, **environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True).stdout

    return run
