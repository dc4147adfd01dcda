"""A run that has to stop saves and reports it in time, whatever the reason: real processes, real signals."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from sealed_experts.training import deadline, interruption
from sealed_experts.training.command import train_job
from sealed_experts.training.deadline import Deadline, job_deadline, parse_time_left
from sealed_experts.training.interruption import EXIT_INTERRUPTED, Interruption
from tests.conftest import ROOT
from tests.unit.training.test_stage import PLAIN, make_job, supervised
from tests.waiting import wait_for

SECONDS = 10.0  # the limit that docs/resume.md promises


@pytest.fixture(autouse=True)
def _terminal():
    """Reset SIGHUP: a process under `nohup` ignores it, and so would the processes of these tests."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture
def endless(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    """A job with more steps than a test can wait for."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset, privacy=PLAIN)
    settings = job.settings.replace(max_steps=10**6, checkpoint_steps=10**6, checkpoint_minutes=10**6)
    return dataclasses.replace(job, settings=settings)


def trains(job):
    """Do what a rule's script does, in a forked process, where torch is already loaded."""
    interruption.STARTED_BY = os.getppid()
    os._exit(train_job(job, supervised))


def starts_a_trainer_and_dies(job, pid, code):
    """Act as Snakemake: start a trainer and die. The trainer continues and reports its exit code here."""
    child = os.fork()
    if child == 0:
        interruption.STARTED_BY = os.getppid()
        code.value = train_job(job, supervised)
        os._exit(0)
    pid.value = child
    time.sleep(60)


def start(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def is_training(job):
    metrics = job.output.parent / "metrics.jsonl"
    return metrics.exists() and len(metrics.read_text().splitlines()) >= 3


def saved_steps(job):
    return [int(path.stem.rpartition("_")[2]) for path in job.checkpoints.glob("*/checkpoint_step_*.pt")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_with_a_checkpoint_in_time(endless, number):
    trainer = start(trains, endless)
    try:
        wait_for(lambda: is_training(endless), seconds=60)
        assert saved_steps(endless) == []
        os.kill(trainer.pid, number)
        trainer.join(SECONDS)
        assert trainer.exitcode == EXIT_INTERRUPTED
    finally:
        trainer.kill()
    assert max(saved_steps(endless)) >= 1


def test_a_run_under_nohup_outlives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.reason is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


# A sleep stands for the time to import whichever of these libraries comes first.
LIBRARIES = ("torch", "transformers", "peft", "numpy")
SLOW = """
import time
open("loading", "w").close()
for _ in range(600):  # not one long one: a signal just before it would wait for its end
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("train_stage.py", signal.SIGTERM),
        ("train_stage.py", signal.SIGUSR1),
        ("train_stage.py", signal.SIGINT),
    ],
)
def test_a_signal_while_the_program_is_loading_is_no_failure(tmp_path, script, number):
    """A bug: SLURM's warning made a loading job end as failed, and Ctrl-C gave a traceback."""
    for library in LIBRARIES:
        (tmp_path / f"{library}.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'scripts'}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for((tmp_path / "loading").exists, seconds=60)
        process.send_signal(number)
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == EXIT_INTERRUPTED
    assert said.splitlines()[-1].startswith(f"interrupted: received {number.name}")
    assert "Traceback" not in said


def test_the_death_of_the_parent_ends_a_run_with_a_checkpoint_in_time(endless):
    shared = multiprocessing.get_context("fork")
    pid, code = shared.Value("i", 0), shared.Value("i", -1)
    parent = start(starts_a_trainer_and_dies, endless, pid, code)
    try:
        wait_for(lambda: is_training(endless), seconds=60)
        parent.kill()
        wait_for(lambda: code.value >= 0, seconds=SECONDS)
        assert code.value == EXIT_INTERRUPTED
    finally:
        parent.kill()
        if code.value < 0:
            os.kill(pid.value, signal.SIGKILL)
    assert max(saved_steps(endless)) >= 1


def slurm_says(tmp_path, monkeypatch, *answers):
    """Put a `squeue` on PATH that gives these answers in turn and repeats the last one; return the log of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for index, answer in enumerate(answers):
        (folder / f"answer{index}").write_text(answer)
    (folder / "squeue").write_text(
        f'#!/bin/sh\ncd "{folder}"\necho "$@" >> calls\n'
        f"n=$(($(wc -l < calls) - 1)); [ $n -lt {len(answers)} ] || n={len(answers) - 1}\ncat answer$n\n"
    )
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder / "calls"


def test_a_run_ends_before_its_slurm_job_does(endless, tmp_path, monkeypatch):
    slurm_says(tmp_path, monkeypatch, "0:04\n", "0:01\n")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    began = time.monotonic()
    trainer = start(trains, endless)
    try:
        trainer.join(SECONDS)
        assert trainer.exitcode == EXIT_INTERRUPTED
        assert time.monotonic() - began > 2.9  # nor did it stop at once
    finally:
        trainer.kill()
    assert max(saved_steps(endless)) >= 1


def test_there_is_a_deadline_under_slurm_only(tmp_path, monkeypatch):
    calls = slurm_says(tmp_path, monkeypatch, "10:00\n")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert job_deadline() is None
    assert not calls.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert job_deadline() is not None
    assert calls.read_text() == "-h -j 17 -o %L\n"


@pytest.mark.parametrize("answer", ["UNLIMITED\n", "NOT_SET\n", "INVALID\n", ""])
def test_a_job_without_a_limit_has_no_deadline(tmp_path, monkeypatch, answer):
    slurm_says(tmp_path, monkeypatch, answer)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert job_deadline() is None


def test_a_squeue_that_fails_is_reported_and_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_deadline() is None
    assert "warning: squeue does not say how long SLURM job 17 has left" in capsys.readouterr().out


def test_a_job_that_is_given_more_time_goes_on(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    answers = iter([3000.0, 59.0])
    limit = Deadline(600.0, ask=lambda: next(answers))
    now = 1539.0
    assert not limit.passed()  # a minute is kept for saving
    now = 1541.0
    assert not limit.passed()  # `scontrol update TimeLimit`: 3000 seconds more
    now = 1541.0 + 2939.0
    assert not limit.passed()
    now = 1541.0 + 2941.0
    assert limit.passed()


def test_a_short_job_trains_for_three_quarters_of_its_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    limit = Deadline(40.0, ask=lambda: 0.0)
    now = 29.0
    assert not limit.passed()
    now = 31.0
    assert limit.passed()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:41\n", 41),
        ("59:03\n", 3543),
        ("1:00:00\n", 3600),
        ("11:59:58\n", 43198),
        ("2-03:04:05\n", 183845),
        ("3:00\n1:00\n", 60),
        ("UNLIMITED\n", None),
        ("NOT_SET\n", None),
        ("slurm_load_jobs error: Invalid job id\n", None),
    ],
)
def test_time_left_is_read_as_squeue_writes_it(text, seconds):
    assert parse_time_left(text) == seconds
