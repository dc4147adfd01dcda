"""Runs killed at several points: the same command continues, and ends with the bytes of an uninterrupted run."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.measured import without_times
from tests.waiting import wait_for
from tests.workflow.conftest import TINY, stop_group

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

EXPERT = "banking_expert"
STEPS = 40
ROLLOUT_STEPS = 16
TARGETS = [f"results/experts/{EXPERT}/sft/training_metrics.json"]
RL_TARGETS = [f"results/experts/{EXPERT}/rl/rl_metrics.json"]


@pytest.fixture
def slow(prepared):
    """A run long enough to kill in the middle. In reproducible mode the key is the same in every run."""
    configuration = json.loads(json.dumps(TINY))
    configuration["defaults"]["sft"].update(max_steps=STEPS, eval_steps=20)
    prepared.configure(configuration)
    return prepared


@pytest.fixture(scope="module")
def expected(finished, tmp_path_factory):
    """The same run, never interrupted."""
    project = finished.copy(tmp_path_factory.mktemp("whole") / "run")
    configuration = json.loads(json.dumps(TINY))
    configuration["defaults"]["sft"].update(max_steps=STEPS, eval_steps=20)
    project.configure(configuration)
    project.snakemake(*TARGETS)
    return outcome(project)


def outcome(project, *, folder="sft", metrics="training_metrics.json", adapter="adapter_final.pt"):
    """Return the digest of the adapter's tensors, and the metrics without measured times."""
    from sealed_experts.training.checkpoints import load_state, tensors_digest

    place = project.folder / "results" / "experts" / EXPERT / folder
    metrics = json.loads((place / metrics).read_text())
    state = load_state(place / adapter)
    return tensors_digest(state["model_state_dict"]), without_times(metrics)


def rl_outcome(project):
    return outcome(project, folder="rl", metrics="rl_metrics.json", adapter="adapter_rl_final.pt")


def steps_done(project, folder="sft"):
    path = project.folder / "results" / "experts" / EXPERT / folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def trainer_pid(project, folder="sft"):
    path = project.folder / "results" / "experts" / EXPERT / folder / "state.json"
    return json.loads(path.read_text())["pid"] if path.exists() else None


def alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def start_and_reach(project, lines, *, targets=TARGETS, folder="sft"):
    process = project.start(*targets)
    wait_for(lambda: steps_done(project, folder) >= lines or process.poll() is not None)
    assert process.poll() is None, "the run ended before it could be interrupted"
    return process


def finish(project):
    """Do what the documentation says after a SIGKILL of Snakemake: unlock, then run the same command again."""
    project.snakemake(flags=("--unlock",))
    project.snakemake(*TARGETS)


def log_of(project, stage="sft"):
    return (project.folder / "results" / "experts" / EXPERT / "logs" / f"train_{stage}.log").read_text()


@pytest.fixture
def refining(finished, tmp_path):
    """A finished supervised stage before a reinforce stage that is long enough to kill in the middle."""
    project = finished.copy(tmp_path / "refining")
    shutil.rmtree(project.folder / "results" / "experts" / EXPERT / "rl")
    return rollouts_configured(project)


@pytest.fixture(scope="module")
def rl_expected(finished, tmp_path_factory):
    """The same run, never interrupted."""
    project = rollouts_configured(finished.copy(tmp_path_factory.mktemp("whole_rl") / "run"))
    project.snakemake(*RL_TARGETS)
    return rl_outcome(project)


def rollouts_configured(project):
    configuration = json.loads(json.dumps(TINY))
    configuration["defaults"]["reinforce"].update(total_steps=ROLLOUT_STEPS, eval_steps=8)
    project.configure(configuration)
    return project


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.slow),
        (9, signal.SIGKILL),
        pytest.param(13, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_rollouts_baseline_and_noise_go_on_exactly_after_a_kill(refining, rl_expected, lines, number):
    process = start_and_reach(refining, lines, targets=RL_TARGETS, folder="rl")
    if number == signal.SIGINT:
        stop_group(process, number)
    else:
        os.kill(trainer_pid(refining, "rl"), number)
        assert process.wait(timeout=60) != 0
    # If the first line is logged before its checkpoint is written, training starts again with the same result.
    kept = list(
        (refining.folder / "results" / "experts" / EXPERT / "rl" / "checkpoints").glob("*/checkpoint_step_*.pt")
    )
    assert kept or lines == 2
    refining.snakemake(*RL_TARGETS)
    assert ("resumed after step" in log_of(refining, "reinforce")) == bool(kept)
    assert rl_outcome(refining) == rl_expected


@pytest.mark.parametrize("lines", [pytest.param(3, marks=pytest.mark.slow), 20])
def test_sigkill_of_the_trainer(slow, expected, lines):
    process = start_and_reach(slow, lines)
    os.kill(trainer_pid(slow), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    slow.snakemake(*TARGETS)
    assert "resumed after step" in log_of(slow)
    assert outcome(slow) == expected


def test_ctrl_c(slow, expected):
    process = start_and_reach(slow, 12)
    stop_group(process, signal.SIGINT)
    slow.snakemake(*TARGETS)
    assert "resumed after step" in log_of(slow)
    assert outcome(slow) == expected
    path = slow.folder / f"results/experts/{EXPERT}/sft/metrics.jsonl"
    steps = [line["step"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_sigterm_to_the_process_group_saves_before_it_ends(slow, expected):
    process = start_and_reach(slow, 12)
    stop_group(process, signal.SIGTERM)
    wait_for(lambda: not alive(trainer_pid(slow)))
    state = json.loads((slow.folder / f"results/experts/{EXPERT}/sft/state.json").read_text())
    assert state["state"] == "interrupted"
    finish(slow)
    assert outcome(slow) == expected


def test_a_trainer_whose_snakemake_was_killed_saves_and_ends_by_itself(slow, expected):
    process = start_and_reach(slow, 8)
    pid = trainer_pid(slow)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid), seconds=20)
    state = json.loads((slow.folder / f"results/experts/{EXPERT}/sft/state.json").read_text())
    assert (state["state"], "is gone" in state["error"]) == ("interrupted", True)
    assert state["step"] < STEPS
    finish(slow)
    assert outcome(slow) == expected


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_a_step_and_changes_nothing(slow, expected):
    process = start_and_reach(slow, 20)
    stop_group(process, signal.SIGINT)
    checkpoints = slow.folder / f"results/experts/{EXPERT}/sft/checkpoints"
    newest = max(checkpoints.glob("*/checkpoint_step_*.pt"), key=lambda path: int(path.stem.rpartition("_")[2]))
    newest.write_bytes(newest.read_bytes()[:1000])
    slow.snakemake(*TARGETS)
    assert "is not usable" in log_of(slow)
    assert outcome(slow) == expected


def test_an_orphaned_trainer_and_a_newcomer_on_one_folder_end_well(slow, expected):
    """Right after the kill, while the orphan still trains: `run` removes the stale lock, and waits for the folder."""
    process = start_and_reach(slow, 8)
    orphan = trainer_pid(slow)
    process.kill()
    process.wait()
    assert (slow.folder / ".snakemake" / "locks").is_dir()
    done = slow.tool("run", *slow.command(*TARGETS)[3:])
    assert "Removing the lock of a run that was killed" in done.stdout
    assert not alive(orphan)
    assert "resumed after step" in log_of(slow)
    assert outcome(slow) == expected


def test_a_disk_that_is_too_small_stops_the_run_and_a_larger_one_goes_on(slow, expected):
    """The log, metrics, journal and checkpoints of the expert are all on this disk."""
    place = slow.folder / "results" / "experts" / EXPERT
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here; the unit tests raise the error instead")
    try:
        done = slow.snakemake(*TARGETS, check=False)
        assert done.returncode != 0
        assert "error: no space left" in done.stdout + done.stderr
        assert "Traceback" not in log_of(slow)
        assert list((place / "sft" / "checkpoints").glob("*/checkpoint_step_*.pt"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        slow.snakemake(*TARGETS)
        assert "resumed after step" in log_of(slow)
        assert outcome(slow) == expected
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_the_next_attempt_gets_more_memory(project):
    """`retries` come from the profile or the command line. Each attempt adds the same amount of memory."""
    place = project.folder / "results" / "experts" / EXPERT / "sft" / "training_metrics.json"
    place.unlink()
    (project.folder / "scripts" / "summarize_stage.py").write_text("raise SystemExit(1)\n")
    done = project.snakemake(*TARGETS, flags=("--retries", "2"), check=False)
    assert done.returncode != 0
    asked = [int(number) for number in re.findall(r"mem_mb=(\d+)", done.stdout + done.stderr)]
    assert asked[:3] == [asked[0], 2 * asked[0], 3 * asked[0]]


def test_a_failed_retrain_followed_by_any_run_rebuilds_the_package(project, planner):
    """After a failure the old package must not count as up to date."""
    package = project.folder / "results" / "packages" / "investment_expert.tgsp"
    before = package.read_bytes()
    changed = json.loads(json.dumps(TINY))
    changed["experts"]["investment_expert"]["sft"] = {"learning_rate": 2.0e-3}
    project.configure(changed)
    script = project.folder / "scripts" / "train_stage.py"
    original = script.read_text()
    script.write_text("raise SystemExit(3)\n")
    assert project.snakemake("packages", check=False).returncode != 0
    script.write_text(original)
    for target in ("all", "moe", "packages", "sft", "report_inputs"):
        assert "train_sft" in planner.plan(project, target)[0], target
    project.snakemake("packages")
    assert package.read_bytes() != before
    again = project.snakemake("packages")
    assert "Nothing to be done" in again.stdout + again.stderr
