"""Continue a run with another number of processes: nothing is lost, no noise is reused, every step is counted."""

import json
import secrets
import shutil

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from sealed_experts.privacy.ledger.journal import recorded
from sealed_experts.privacy.ledger.published_receipt import receipt_bytes
from sealed_experts.privacy.ledger.recomputation import recompute_privacy
from sealed_experts.training import stage as stage_module
from sealed_experts.training.checkpoints import CheckpointFolder, load_state
from sealed_experts.training.interruption import Interrupted, Interruption
from sealed_experts.training.progress import ProgressFiles
from sealed_experts.training.stage import train_stage
from tests.distributed import train_as
from tests.unit.training.test_distributed import REPRODUCIBLE, close, dies_in_step, job_in, kill_itself
from tests.unit.training.test_stage import PLAIN, PRIVATE, comparable, supervised, train

STEPS = 6


@pytest.fixture
def claiming(monkeypatch):
    """Let this process act as one of `count`: a run is identified by the number in its environment."""
    original = stage_module.numeric_environment

    def claim(count):
        monkeypatch.setattr(
            stage_module, "numeric_environment", lambda **named: original(**{**named, "processes": count})
        )

    return claim


def stop_after(monkeypatch, job, step):
    """Train until a signal comes, some time after `step`."""
    original, done = stage_module.TrainingLoop.train_step, []

    def train_step(self, number):
        done.append(number - 1)
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(stage_module.TrainingLoop, "train_step", train_step)
        patch.setattr(Interruption, "reason", property(lambda self: "asked by a test" if step in done else None))
        with pytest.raises(Interrupted):
            train_stage(job, supervised)


def runs(job):
    """Return {number of processes: folder}, for a chain in which no number occurs twice."""
    folders = [path.parent for path in job.checkpoints.glob("*/run.json")]
    return {json.loads((folder / "run.json").read_text())["environment"]["processes"]: folder for folder in folders}


def independent_epsilon(state, steps):
    """Compute ε for `steps` equal steps with dp_accounting only."""
    privacy = state["privacy"]
    loss = pld.from_gaussian_mechanism(
        standard_deviation=privacy["effective_noise_multiplier"], sampling_prob=privacy["sample_rate"]
    )
    return loss.self_compose(steps).get_epsilon_for_delta(privacy["delta"])


@pytest.mark.parametrize("privacy", [PLAIN, REPRODUCIBLE], ids=["plain", "reproducible"])
def test_after_a_death_one_process_goes_on_and_ends_like_an_uninterrupted_run(
    tmp_path, tiny_base, tiny_dataset, capfd, privacy
):
    job, whole = (
        job_in(tmp_path / name, tiny_base, tiny_dataset, privacy=privacy, max_steps=STEPS, checkpoint_steps=2)
        for name in ("job", "whole")
    )
    assert 0 not in train_as(2, job, supervised, folder=tmp_path / "said", before=dies_in_step(4, kill_itself)).codes
    state, expected = train(job), train(whole)
    said = capfd.readouterr().out
    assert "going on after step 2 of the run with processes: 2; now processes: 1\n" in said
    assert "resumed after step 2 of 6" in said
    close(expected, state)
    assert [line["step"] for line in state["history"] if "loss" in line] == list(range(1, STEPS + 1))
    assert state["examples_seen"] == expected["examples_seen"]
    assert (state["privacy"]["steps"], state["privacy"]["epsilon"]) == (expected["privacy"]["steps"], None)


def test_in_release_mode_every_key_is_used_for_one_number_of_processes_and_all_are_counted(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, capfd
):
    job = job_in(tmp_path, tiny_base, tiny_dataset, max_steps=STEPS, checkpoint_steps=2)
    train_as(2, job, supervised, folder=tmp_path / "said", before=dies_in_step(4, kill_itself))
    first = runs(job)[2]
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    stop_after(monkeypatch, job, 4)  # with one process, from step 2
    assert "the noise has a new key, and ε counts what was noised under each" in capfd.readouterr().out
    second = runs(job)[1]
    taken_over = CheckpointFolder(job.checkpoints, fingerprint=second.name, keep=1).newest_step
    assert taken_over == 4
    assert train_as(3, job, supervised, folder=tmp_path / "said").codes == [0, 0, 0]
    third = runs(job)[3]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before  # a continued run is never changed

    state = load_state(job.output)
    keys = [folder / "key" for folder in (first, second, third)]
    assert len({key.read_bytes() for key in keys}) == 3
    counts = [len((folder / "journal").read_text().splitlines()) - 1 for folder in (first, second, third)]
    assert counts[0] == 3  # one more than the taken-over state has: somebody may have seen its result
    assert counts[2] == STEPS - taken_over
    events = state["privacy"]["events"]
    assert [(event["steps"], event["stage"]) for event in events] == [(count, "sft") for count in counts]
    assert len({event["key_id"] for event in events}) == 3
    assert state["privacy"]["epsilon"] == pytest.approx(independent_epsilon(state, sum(counts)), rel=5e-3)
    assert state["history"][-2]["epsilon"] == state["privacy"]["epsilon"]
    assert state["stopped_reason"] == "max_steps"
    recompute_privacy(json.loads(receipt_bytes(state["privacy"])))  # what the reader of a package computes again


def test_a_continued_run_that_is_interrupted_ends_bit_for_bit(tmp_path, tiny_base, tiny_dataset, monkeypatch, claiming):
    begun = job_in(tmp_path / "begun", tiny_base, tiny_dataset, max_steps=STEPS, checkpoint_steps=2)
    claiming(2)
    stop_after(monkeypatch, begun, 2)
    states = []
    for name, step in (("whole", None), ("broken", 4)):
        shutil.copytree(tmp_path / "begun", tmp_path / name)
        job = job_in(tmp_path / name, tiny_base, tiny_dataset, max_steps=STEPS, checkpoint_steps=2)
        claiming(1)
        with monkeypatch.context() as patch:
            patch.setattr(secrets, "token_bytes", bytes)
            if step:
                stop_after(monkeypatch, job, step)
            states.append(train(job))
    assert comparable(states[0]) == comparable(states[1])


def test_a_kill_while_the_state_is_taken_over_changes_nothing(tmp_path, tiny_base, tiny_dataset, monkeypatch, claiming):
    job = job_in(tmp_path, tiny_base, tiny_dataset, max_steps=STEPS, checkpoint_steps=2)
    claiming(2)
    stop_after(monkeypatch, job, 3)
    claiming(1)
    for moment in ("save", "describe"):
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointFolder, moment, _killed)
            with pytest.raises(KeyboardInterrupt):
                train(job)
    (half_done,) = [path for path in job.checkpoints.glob("*/") if not (path / "run.json").exists()]
    key = (half_done / "key").read_bytes()
    state = train(job)
    assert (half_done / "key").read_bytes() == key
    assert [event["steps"] for event in state["privacy"]["events"]] == [
        recorded(folder / "journal", fingerprint=folder.name).steps for folder in (runs(job)[2], half_done)
    ]


def _killed(*_arguments, **_named):
    raise KeyboardInterrupt


def test_steps_that_were_noised_twice_come_out_of_the_budget(tmp_path, tiny_base, tiny_dataset, monkeypatch, claiming):
    free = train(job_in(tmp_path / "free", tiny_base, tiny_dataset, max_steps=STEPS))
    curve = [line["epsilon"] for line in free["history"] if "loss" in line]
    tight = PRIVATE.replace(target_epsilon=(curve[4] + curve[5]) / 2)  # five steps
    job = job_in(tmp_path / "job", tiny_base, tiny_dataset, privacy=tight, max_steps=STEPS, checkpoint_steps=2)
    claiming(2)
    with monkeypatch.context() as patch:  # dies after step 3, with a checkpoint of step 2
        patch.setattr(ProgressFiles, "log", _dies_at(3))
        with pytest.raises(KeyboardInterrupt):
            train(job)
    claiming(1)
    state = train(job)
    assert [event["steps"] for event in state["privacy"]["events"]] == [3, 2]
    assert (state["step"], state["stopped_reason"]) == (4, "privacy_budget")
    assert state["privacy"]["epsilon"] == curve[4] <= tight.target_epsilon


def _dies_at(step):
    original = ProgressFiles.log

    def log(self, line):
        if line["step"] == step:
            raise KeyboardInterrupt
        original(self, line)

    return log


def test_a_finished_run_is_taken_over_as_it_is(tmp_path, tiny_base, tiny_dataset, claiming):
    job = job_in(tmp_path, tiny_base, tiny_dataset, max_steps=2)
    claiming(2)
    expected = train(job)
    claiming(1)
    state = train(job)
    assert comparable(state["model_state_dict"]) == comparable(expected["model_state_dict"])
    assert state["privacy"] == expected["privacy"]
    recompute_privacy(json.loads(receipt_bytes(state["privacy"])))


def test_a_run_without_any_checkpoint_still_counts_what_it_noised(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, claiming
):
    job = job_in(tmp_path, tiny_base, tiny_dataset, max_steps=2, checkpoint_steps=100)
    claiming(2)
    with monkeypatch.context() as patch:
        patch.setattr(ProgressFiles, "log", _dies_at(1))
        with pytest.raises(KeyboardInterrupt):
            train(job)
    claiming(1)
    assert [event["steps"] for event in train(job)["privacy"]["events"]] == [1, 2]


def test_another_library_beside_another_number_of_processes_starts_again(
    tmp_path, tiny_base, tiny_dataset, claiming, capfd
):
    claiming(2)
    train(job_in(tmp_path, tiny_base, tiny_dataset, max_steps=2))
    claiming(1)
    state = train(job_in(tmp_path, tiny_base, tiny_dataset, max_steps=2, token_budget=100))
    assert "with another token_budget, processes; they cannot be resumed here" in capfd.readouterr().err
    assert len(state["privacy"]["events"]) == 1
