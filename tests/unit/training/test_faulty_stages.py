"""Other failures of a stage: each gives a message, nothing is lost, and no stage restarts silently."""

import dataclasses
import gc
import json
import shutil
import time

import pytest
import torch

from sealed_experts.cli.progress import read_progress
from sealed_experts.data.records import read_records, write_records
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.errors import UserError
from sealed_experts.privacy.mechanism import GradientMechanism
from sealed_experts.training import checkpoints, other_runs
from sealed_experts.training import stage as stage_module
from sealed_experts.training.batches import UnitShapes
from sealed_experts.training.checkpoints import CheckpointFolder, load_state, save_state, state_digest
from sealed_experts.training.interruption import Interrupted
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.shapes import Grid
from sealed_experts.training.stage import train_stage
from tests.unit.training.test_stage import PLAIN, PRIVATE, comparable, interrupt_after, make_job, supervised, train

REPRODUCIBLE = PRIVATE.replace(mode="reproducible")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Leave out what takes most of a small run's time and is not part of these tests."""
    monkeypatch.setattr(stage_module, "check_gradients", lambda **_: None)
    alone = UnitShapes(grid=Grid(multiple=16, fineness=8, longest=512), shapes={})
    monkeypatch.setattr(stage_module, "find_unit_shapes", lambda **_: alone)
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def interrupted(job, monkeypatch, *, polls=16):
    """Train `job` about half of its steps, and return the step of its newest checkpoint."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, polls)
        with pytest.raises(Interrupted):
            train_stage(job, supervised)
    return max(int(path.stem.rpartition("_")[2]) for path in job.checkpoints.glob("*/checkpoint_step_*.pt"))


def test_data_that_changed_between_kill_and_resume_start_again_out_loud_and_the_old_run_is_kept(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, capfd
):
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    job = make_job(tmp_path / "run", tiny_base, data, privacy=REPRODUCIBLE)
    expected = comparable(train(make_job(tmp_path / "whole", tiny_base, tiny_dataset, privacy=REPRODUCIBLE)))
    step = interrupted(job, monkeypatch)
    records = read_records(data / "train.jsonl")
    another = Instruction.of(instruction=records[0].instruction, output="Another answer.")
    write_records(data / "train.jsonl", [another, *records[1:]])
    capfd.readouterr()
    changed = train(job)
    said = capfd.readouterr().out
    assert f"holds a run up to step {step}, but of another data." in said
    assert "resumed after" not in said
    assert [line["step"] for line in changed["history"] if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert comparable(changed["model_state_dict"]) != expected["model_state_dict"]
    shutil.copy2(tiny_dataset / "train.jsonl", data / "train.jsonl")
    assert comparable(train(job)) == expected
    assert f"resumed after step {step} of 6" in capfd.readouterr().out


def test_a_base_that_changed_between_kill_and_resume_is_refused_and_another_one_starts_out_loud(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, capfd
):
    from tests.tiny import build_tiny_base

    base = tmp_path / "base"
    shutil.copytree(tiny_base.parent, base)
    job = make_job(tmp_path / "run", base / "base.json", tiny_dataset, privacy=PLAIN)
    step = interrupted(job, monkeypatch)
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors \(changed\); delete the folder and run the same command"):
        train_stage(job, supervised)
    other = build_tiny_base(tmp_path / "other", seed=5)
    capfd.readouterr()
    train(dataclasses.replace(job, base=other))
    assert f"holds a run up to step {step}, but of another base model." in capfd.readouterr().out
    weights.write_bytes(whole)
    train(job)
    assert f"resumed after step {step} of 6" in capfd.readouterr().out


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    expected = comparable(train(make_job(tmp_path / "whole", tiny_base, tiny_dataset, privacy=REPRODUCIBLE)))
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset, privacy=REPRODUCIBLE)
    started = time.time()
    readings = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: started - 3600.0 * next(readings))
        interrupted(job, monkeypatch)
        assert comparable(train(job)) == expected
    state = json.loads((job.output.parent / "state.json").read_text())
    assert state["updated"] < state["started"]
    folder = tmp_path / "results" / "experts" / "tiny_expert"
    shutil.copytree(job.output.parent, folder / "sft")
    (progress,) = read_progress(results=tmp_path / "results", stages=[("tiny_expert", "sft")], now=state["updated"] - 1)
    assert (progress.state, progress.step) == ("done", 6)


def test_a_loss_that_is_not_finite_stops_a_run_without_privacy_and_no_private_one(
    tmp_path, tiny_base, tiny_dataset, monkeypatch
):
    """One record's loss is infinite, but all gradients are finite. Under privacy, stopping would reveal the record."""
    original = SupervisedFineTuning.per_example_loss
    calls = iter(range(10**6))

    def lost(self, model, batch, constants):
        loss, figures = original(self, model, batch, constants)
        offset = torch.full_like(loss, float("inf") if next(calls) >= 5 else 0.0)
        return loss + offset, figures  # a constant has a zero gradient

    monkeypatch.setattr(SupervisedFineTuning, "per_example_loss", lost)
    plain = make_job(tmp_path / "plain", tiny_base, tiny_dataset, privacy=PLAIN, checkpoint_steps=1)
    with pytest.raises(UserError, match=r"step \d: the loss became infinite or NaN.*Lower sft.learning_rate") as caught:
        train_stage(plain, supervised)
    stopped = int(str(caught.value).split(":")[0].removeprefix("step "))
    newest = max(int(path.stem.rpartition("_")[2]) for path in plain.checkpoints.glob("*/*.pt"))
    assert newest == stopped - 1 >= 1
    assert "the loss became" in json.loads((plain.output.parent / "state.json").read_text())["error"]
    assert train(make_job(tmp_path / "private", tiny_base, tiny_dataset, privacy=REPRODUCIBLE))["step"] == 6


def test_a_noised_update_that_is_not_finite_stops_a_private_run_and_keeps_the_checkpoint(
    tmp_path, tiny_base, tiny_dataset, monkeypatch
):
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=REPRODUCIBLE)
    original = GradientMechanism.release

    def broken(self, *, step):
        release = original(self, step=step)
        if step == 4:
            release.gradients[0][0] = float("nan")
        return release

    with monkeypatch.context() as patch:
        patch.setattr(GradientMechanism, "release", broken)
        with pytest.raises(
            UserError, match=r"step 4: the gradient became infinite or NaN; the last checkpoint is kept"
        ):
            train_stage(job, supervised)
    assert [path.name for path in job.checkpoints.glob("*/*.pt")] == ["checkpoint_step_2.pt"]
    assert not job.output.exists()
    state = train(job)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model_state_dict"].values())


def test_a_state_of_a_later_version_is_refused_with_the_reason_and_left_alone(
    tmp_path, tiny_base, tiny_dataset, monkeypatch
):
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset, privacy=PLAIN)
    step = interrupted(job, monkeypatch)
    (folder,) = (path.parent for path in job.checkpoints.glob("*/run.json"))
    state = load_state(folder / f"checkpoint_step_{step}.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "VERSION", 2)
        save_state(state, folder / f"checkpoint_step_{step}.pt")
    names = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match="is of version 2, written by a later release of this program; this one reads"):
        train_stage(job, supervised)
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_state_from_before_versions_is_read_as_it_was(tmp_path):
    """Files of earlier releases have no version: their content is that of version 1."""
    state = {"a": torch.arange(3.0), "fingerprint": "f"}
    torch.save({**state, "digest": state_digest(state)}, tmp_path / "old.pt")
    assert load_state(tmp_path / "old.pt")["a"].tolist() == [0.0, 1.0, 2.0]
    save_state(state, tmp_path / "new.pt")
    assert load_state(tmp_path / "new.pt").keys() == state.keys()


def test_another_file_of_ours_in_a_checkpoints_place_is_no_checkpoint(tmp_path, capsys):
    folder = CheckpointFolder(tmp_path, fingerprint="f" * 64, keep=2)
    folder.save({"step": 1}, step=1)
    save_state({"step": 2, "settings": {}}, folder.path / "checkpoint_step_2.pt")  # like an adapter file
    assert folder.load_newest()["step"] == 1
    assert "belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [(PermissionError(13, "Permission denied"), "cannot read"), (MemoryError(), None)],
    ids=["unreadable", "memory"],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch, error, message):
    """If it were renamed, it would be lost although it is not damaged."""
    folder = CheckpointFolder(tmp_path, fingerprint="f" * 64, keep=2)
    for step in (1, 2):
        folder.save({"step": step}, step=step)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
        with pytest.raises(UserError if message else MemoryError, match=message):
            folder.load_newest()
    assert folder.load_newest()["step"] == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"subject": {}, "environment": 3}'], ids=str)
def test_a_damaged_description_of_another_run_is_named(tmp_path, tiny_base, tiny_dataset, content):
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=PLAIN)
    foreign = job.checkpoints / ("a" * 64) / "run.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(content)
    with pytest.raises(UserError, match=r"a/run\.json"):
        train_stage(job, supervised)


def test_only_the_newest_of_many_other_runs_is_told(tmp_path, capsys):
    for index in range(4):
        folder = CheckpointFolder(tmp_path, fingerprint=str(index) * 64, keep=2)
        folder.describe(subject={"seed": index, "settings": {"a": index % 2}}, environment={})
        if index:
            folder.save({"step": index}, step=index)
        (folder.path / "checkpoint_step_x.pt").touch()
    capsys.readouterr()
    own = tmp_path / "own" / "run.json"
    own.parent.mkdir()
    other_runs.report_other_runs(own, subject={"seed": 9, "settings": {"a": 1}}, environment={})
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.count("\n") == 1
    assert "3 holds a run up to step 3, but of another seed." in out.out


def test_a_run_whose_folder_was_replaced_writes_no_adapter(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    """The folder was deleted, and another run with another key has begun in it."""
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=PLAIN, max_steps=1)
    original = stage_module.TrainingLoop.train

    def train_and_replace(self):
        original(self)
        shutil.move(job.checkpoints, tmp_path / "away")
        shutil.copytree(tmp_path / "away", job.checkpoints)

    with monkeypatch.context() as patch:
        patch.setattr(stage_module.TrainingLoop, "train", train_and_replace)
        with pytest.raises(UserError, match="was removed while this run was using it, and another one is in its place"):
            train_stage(job, supervised)
    assert [path.name for path in job.output.parent.glob("*.pt")] == []
    assert train(job)["step"] == 1
