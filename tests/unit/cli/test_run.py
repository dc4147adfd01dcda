"""`sealed-experts run`: one run at a time, old locks removed, signals passed on. A small script plays Snakemake."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealed_experts import machine
from sealed_experts.cli.main import main
from sealed_experts.cli.run import default_gpus, makes_mixture
from sealed_experts.files.canonical import write_json
from tests.conftest import ROOT
from tests.unit.moe.test_configuration import CONTENT

# Records its arguments and locks as Snakemake does. With "wait" it starts a job that records signals and ends.
SNAKEMAKE = """
import json, os, pathlib, signal, subprocess, sys, time
with open("calls.jsonl", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
locks = pathlib.Path(".snakemake/locks")
if "--unlock" in sys.argv:
    for path in locks.iterdir():
        path.unlink()
    sys.exit(0)
if "fail" in sys.argv:
    sys.exit(3)
if "wait" in sys.argv:
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.output.lock").touch()
    job = '''
import os, pathlib, signal, time
def note(number, frame):
    pathlib.Path("job.signal").write_text(signal.Signals(number).name)
    raise SystemExit(75)
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
parent = os.getppid()
pathlib.Path("job.pid").write_text(str(os.getpid()))
while os.getppid() == parent:
    time.sleep(0.02)
pathlib.Path("job.orphan").touch()
'''
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen([sys.executable, "-c", job])
    pathlib.Path("snakemake.pid").write_text(str(os.getpid()))
    code = child.wait()
    (locks / "0.output.lock").unlink()
    sys.exit(0 if "well" in sys.argv else 1)
"""


class Folder:
    """A folder with a space in its name, a Snakefile and our script instead of Snakemake."""

    def __init__(self, path: Path) -> None:
        self.path = path / "my experts"
        (self.path / "bin" / "snakemake").mkdir(parents=True)
        (self.path / "bin" / "snakemake" / "__init__.py").touch()
        (self.path / "bin" / "snakemake" / "__main__.py").write_text(SNAKEMAKE)
        (self.path / "Snakefile").touch()
        (self.path / "config").mkdir()
        for name in ("a b.yaml", "c.yaml", "config/a.yaml"):
            (self.path / name).write_text("seed: 1\n")

    def start(self, *arguments: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(self.path / "bin"), str(ROOT / "scripts")])
        return subprocess.Popen(
            [sys.executable, "-m", "sealed_experts.cli.main", "run", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self) -> list[list[str]]:
        path = self.path / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def leave_lock(self) -> None:
        locks = self.path / ".snakemake" / "locks"
        locks.mkdir(parents=True)
        (locks / "0.output.lock").touch()

    def wait_for(self, name: str) -> str:
        deadline = time.monotonic() + 30
        while not (self.path / name).exists() or (name.endswith("pid") and not (self.path / name).read_text()):
            assert time.monotonic() < deadline, f"{name} never appeared"
            time.sleep(0.02)
        return (self.path / name).read_text()


def leave_package(folder: Folder) -> Path:
    """Make a package of one stage without its adapter, and start a second stage. Return the missing adapter's path."""
    expert = folder.path / "results" / "experts" / "one"
    (expert / "sft").mkdir(parents=True)
    (expert / "rl" / "checkpoints").mkdir(parents=True)
    write_json(expert / "selection.json", {"candidates": ["sft"]})
    (folder.path / "results" / "packages").mkdir()
    (folder.path / "results" / "packages" / "one.tgsp").touch()
    return expert / "sft" / "adapter_final.pt"


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path)
    yield made
    for name in ("snakemake.pid", "job.pid"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((made.path / name).read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ([], ["--cores", "all"]),
        (["--cores", "2"], ["--cores", "2"]),
        (["-c1"], ["-c1"]),
        (["--cores=2", "moe"], ["--cores=2", "moe"]),
        (["--workflow-profile", "profiles/slurm"], ["--workflow-profile", "profiles/slurm"]),
        (
            ["--configfile", "a b.yaml", "c.yaml", "--", "moe"],
            ["--cores", "all", "--configfile", "a b.yaml", "c.yaml", "--", "moe"],
        ),
        (["--config", "-c"], ["--config", "-c"]),
        (["--", "--cores"], ["--cores", "all", "--", "--cores"]),
        (["-n"], ["--cores", "all", "-n"]),
        (["--quiet-summary", "moe"], ["--cores", "all", "moe"]),
    ],
)
def test_arguments_are_snakemakes_own(folder, given, called):
    code, _, err = folder.run(*given)
    assert (code, err) == (0, "")
    assert folder.calls() == [called]


def test_exit_code_is_snakemakes(folder):
    assert folder.run("fail")[0] == 3


def test_folder_without_snakefile_is_refused(folder):
    (folder.path / "Snakefile").unlink()
    code, _, err = folder.run()
    assert code == 1
    assert "has no Snakefile" in err
    assert folder.calls() == []


def test_summary_follows_success_only(folder):
    write_json(folder.path / "results/moe/moe_config.json", CONTENT)
    assert "Try next:" in folder.run()[1]
    assert "Try next:" not in folder.run("--quiet-summary")[1]
    assert "Try next:" not in folder.run("-n")[1]
    assert "Try next:" not in folder.run("fail")[1]


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ([], True),
        (["--cores", "all"], True),
        (["--cores", "all", "--", "all"], True),
        (["--", "moe"], True),
        (["moe"], True),
        (["--configfile", "a.yaml", "--"], True),
        (["--", "sft", "results/moe/moe_config.json"], True),
        (["--", "sft"], False),
        (["--cores", "all", "packages"], False),
        (["--cores", "all", "--", "results/packages/a.tgsp"], False),
        (["results/packages/a.tgsp"], False),
        (["--until", "train_sft", "--"], False),
    ],
)
def test_a_part_of_a_run_is_not_summed_up_as_the_mixture(arguments, whole):
    assert makes_mixture(arguments) is whole


def test_no_summary_follows_a_part(folder):
    write_json(folder.path / "results/moe/moe_config.json", CONTENT)
    assert "Try next:" not in folder.run("--", "sft")[1]


def test_a_target_that_reads_as_a_configuration_is_told_apart(folder):
    code, _, err = folder.run("--configfile", "a b.yaml", "packages")
    assert code == 1
    assert err.startswith("error: cannot read the configuration packages: No such file")
    assert err.endswith("; a target comes after `--`\n")
    assert "target" not in folder.run("--configfile", "nosuch.yaml")[2]


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ([], ["--resources=gpu=2"]),
        (["--cores", "2", "moe"], ["--resources=gpu=2"]),
        (["--resources", "gpu=1"], []),
        (["--resources=gpu=1"], []),
        (["--workflow-profile", "profiles/slurm"], []),
        (["--executor=slurm"], []),
    ],
)
def test_as_many_jobs_use_a_gpu_as_there_are(monkeypatch, arguments, limit):
    monkeypatch.setattr(machine, "device_files", lambda: ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert default_gpus(arguments) == limit


def test_without_a_gpu_snakemake_is_told_of_none(monkeypatch):
    monkeypatch.setattr(machine, "device_files", lambda: [])
    assert default_gpus([]) == []


def test_stale_lock_is_removed(folder):
    folder.leave_lock()
    code, out, _ = folder.run("--configfile", "config/a.yaml", "--", "moe")
    assert code == 0
    assert "Removing the lock of a run that was killed" in out
    unlock, run = folder.calls()
    assert "--unlock" in unlock[: unlock.index("--")]
    assert unlock[unlock.index("--configfile") + 1] == "config/a.yaml"
    assert run == ["--cores", "all", "--configfile", "config/a.yaml", "--", "moe"]


@pytest.mark.parametrize("flag", ["-n", "-np", "--dry-run", "--dryrun"])
def test_dry_run_disturbs_no_lock(folder, flag):
    folder.leave_lock()
    assert folder.run(flag)[0] == 0
    assert folder.calls() == [["--cores", "all", flag]]


def test_second_run_waits_and_refuses_naming_the_first(folder, monkeypatch, capsys):
    first = folder.start("wait")
    folder.wait_for("job.pid")
    monkeypatch.setattr("sealed_experts.cli.run.WAIT_SECONDS", 0.3)
    monkeypatch.chdir(folder.path)
    assert main(["run"]) == 1
    assert f"is in use by process {first.pid}" in capsys.readouterr().err
    assert not any("--unlock" in call for call in folder.calls())
    assert (folder.path / ".snakemake/locks/0.output.lock").exists()
    first.terminate()
    first.communicate(timeout=30)


def test_lock_of_a_plain_snakemake_is_not_removed(folder, monkeypatch, capsys):
    """A plain Snakemake does not take our lock, and its own lock names no process."""
    plain = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "wait"],
        cwd=folder.path,
        env={**os.environ, "PYTHONPATH": str(folder.path / "bin")},
    )
    folder.wait_for("job.pid")
    monkeypatch.setattr("sealed_experts.cli.run.WAIT_SECONDS", 0.3)
    monkeypatch.chdir(folder.path)
    assert main(["run"]) == 1
    assert f"Snakemake (process {plain.pid}) is running in this folder" in capsys.readouterr().err
    assert (folder.path / ".snakemake/locks/0.output.lock").exists()
    os.kill(int(folder.wait_for("job.pid")), signal.SIGTERM)
    plain.wait(timeout=30)


@pytest.mark.parametrize(
    ("sent", "received"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGTERM")]
)
def test_signal_reaches_the_jobs_and_run_waits_for_them(folder, sent, received):
    process = folder.start("wait")
    folder.wait_for("job.pid")
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert err == "Stopped. Finished files and checkpoints are kept; run the same command again to continue.\n"
    assert (folder.path / "job.signal").read_text() == received
    assert not (folder.path / ".snakemake/locks/0.output.lock").exists()


def test_a_run_that_ends_well_in_spite_of_a_signal_is_no_stop(folder):
    process = folder.start("wait", "well")
    folder.wait_for("job.pid")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_a_hang_up_that_nohup_ignores_stops_nothing(folder):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; what is started inherits it
    try:
        process = folder.start("wait")
    finally:
        signal.signal(signal.SIGHUP, before)
    folder.wait_for("job.pid")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    assert not (folder.path / "job.signal").exists()
    process.terminate()
    process.communicate(timeout=30)
    assert (folder.path / "job.signal").read_text() == "SIGTERM"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_killed_run_takes_snakemake_along_and_the_next_run_goes_on(folder):
    process = folder.start("wait")
    folder.wait_for("job.pid")
    process.kill()
    process.communicate(timeout=30)
    folder.wait_for("job.orphan")  # the job has noticed, and would save now
    code, out, _ = folder.run()
    assert code == 0
    assert "Removing the lock" in out


def test_killed_snakemake_leaves_a_lock_that_the_next_run_removes(folder):
    process = folder.start("wait")
    folder.wait_for("job.pid")
    os.kill(int(folder.wait_for("snakemake.pid")), signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert (folder.path / ".snakemake/locks/0.output.lock").exists()
    assert folder.run()[0] == 0


def test_a_package_that_a_begun_training_will_replace_is_told_of(folder):
    """If the user asks for such a package by its name, Snakemake believes that it is up to date."""
    adapter = leave_package(folder)
    code, _, err = folder.run("results/packages/one.tgsp")
    assert code == 0
    assert "note: results/packages/one.tgsp is from an earlier training" in err
    assert "results/experts/one/sft/adapter_final.pt is missing" in err
    assert "note:" not in folder.run("packages")[2], "the target makes the adapter, too"
    adapter.touch()
    assert "note:" not in folder.run("results/packages/one.tgsp")[2], "the second stage was begun for no package yet"


def test_a_note_that_nobody_reads_changes_no_exit_code(folder):
    leave_package(folder)
    process = folder.start("results/packages/one.tgsp")
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()
