"""Several processes train like one: the same batches, equal weights up to rounding, one journal, the same ε."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch

from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.privacy.mechanism import GradientMechanism
from sealed_experts.training.checkpoints import CheckpointFolder, load_state
from sealed_experts.training.command import train_job
from sealed_experts.training.interruption import EXIT_INTERRUPTED
from sealed_experts.training.launcher import EXIT_PEER, EXIT_STOPPED
from sealed_experts.training.loop import TrainingLoop
from sealed_experts.training.processes import ProcessGroup
from sealed_experts.training.samplers import PoissonSampler
from tests.distributed import Forked, train_as
from tests.unit.training.test_stage import PLAIN, PRIVATE, comparable, make_job, supervised, train

REPRODUCIBLE = PRIVATE.replace(mode="reproducible")
STEPS = 4


def job_in(folder, base, dataset, **changes):
    return make_job(folder, base, dataset, **{"max_steps": STEPS, "eval_steps": 2, **changes})


def close(one, other):
    """Return whether weights differ only by rounding."""
    assert one["model_state_dict"].keys() == other["model_state_dict"].keys()
    for name, tensor in one["model_state_dict"].items():
        torch.testing.assert_close(other["model_state_dict"][name], tensor, rtol=1e-4, atol=1e-5)


def recorder(path):
    """Make every process write down the units it differentiates, step by step."""

    def before(rank):
        original = TrainingLoop.differentiate

        def differentiate(self, examples, *, step):
            with open(path / f"{rank}.jsonl", "a") as stream:
                stream.write(json.dumps([step, [example.unit for example in examples]]) + "\n")
            return original(self, examples, step=step)

        TrainingLoop.differentiate = differentiate

    return before


def recorded(path):
    """Return {step: [units of each rank]}."""
    steps = {}
    for file in sorted(path.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            step, units = json.loads(line)
            steps.setdefault(step, []).append(units)
    return steps


@pytest.mark.parametrize(
    ("privacy", "batch", "count"),
    [(PLAIN, 8, 2), (PLAIN, 2, 3), (REPRODUCIBLE, 8, 3), (PRIVATE, 2, 2), (PRIVATE, 8, 2)],
    ids=["plain", "fewer than processes", "reproducible", "a few, private", "private"],
)
def test_processes_train_what_one_would(tmp_path, tiny_base, tiny_dataset, monkeypatch, privacy, batch, count):
    """Batches of 8 or 2, drawn or shuffled, on 2 or 3 processes: shares are uneven, and some are empty."""
    key = bytes(range(32))
    monkeypatch.setattr(CheckpointFolder, "secret_key", lambda self: key)
    alone, shared = (
        job_in(tmp_path / name, tiny_base, tiny_dataset, privacy=privacy, batch_size=batch)
        for name in ("alone", "shared")
    )
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "differentiate", TrainingLoop.differentiate)  # restored below
        recorder(tmp_path / "one")(0)
        expected = train(alone)
    ended = train_as(count, shared, supervised, folder=tmp_path / "said", before=recorder(tmp_path / "many"))
    assert ended.codes == [0] * count, ended.said
    state = load_state(shared.output)
    close(expected, state)
    for one, many in zip(recorded(tmp_path / "one").values(), recorded(tmp_path / "many").values(), strict=True):
        assert len(many) == count
        assert sorted(unit for share in many for unit in share) == sorted(one[0])  # disjoint and complete
        assert max(map(len, many)) - min(map(len, many)) <= 1
    assert state["environment"]["processes"] == count
    assert state["privacy"] == expected["privacy"]
    assert len(state["history"]) == len(expected["history"])
    for ours, theirs in zip(comparable(state["history"]), comparable(expected["history"]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_the_order_of_the_sum_is_defined_so_that_a_run_repeats_itself(tmp_path, tiny_base, tiny_dataset):
    states = []
    for name in ("one", "two"):
        job = job_in(tmp_path / name, tiny_base, tiny_dataset, privacy=REPRODUCIBLE)
        assert train_as(3, job, supervised, folder=tmp_path / "said").codes == [0, 0, 0]
        states.append(load_state(job.output))
    assert comparable(states[0]) == comparable(states[1])


def test_sums_are_those_in_the_order_of_ranks(tmp_path):
    """The sum of these numbers depends on the order."""
    values = [1e16, 1.0, -1e16, 1.0, 3.0]

    def work(rank):
        from sealed_experts.training.processes import joined

        with joined(timeout_minutes=1) as processes:
            tensors = [torch.full((2, 3), values[rank], dtype=torch.float64), torch.zeros(0, dtype=torch.float64)]
            total, empty = processes.sum(tensors)
            assert (total.shape, empty.numel()) == ((2, 3), 0)
            assert set(total.flatten().tolist()) == {sum(values)}  # added from the left
            assert processes.exchange({"rank": rank, "n": float("nan")})[3]["rank"] == 3
            shares = processes.exchange(processes.share(range(13)))
            assert sorted(item for share in shares for item in share) == list(range(13))

    ended = Forked(work, count=len(values), folder=tmp_path).wait()
    assert ended.codes == [0] * len(values), ended.said


def test_an_empty_draw_hangs_nobody(tmp_path, tiny_base, tiny_dataset):
    def before(rank):
        PoissonSampler.draw = lambda self, step: np.zeros(0, dtype=np.int64)

    job = job_in(tmp_path, tiny_base, tiny_dataset, max_steps=2)
    assert train_as(2, job, supervised, folder=tmp_path / "said", before=before).codes == [0, 0]
    state = load_state(job.output)
    assert [line["loss"] for line in state["history"] if "loss" in line] == [None, None]
    assert state["privacy"]["events"][0]["steps"] == 2


def test_only_the_first_process_writes_and_every_one_sees_the_journal_first(tmp_path, tiny_base, tiny_dataset):
    job = job_in(tmp_path / "job", tiny_base, tiny_dataset)
    job.checkpoints.mkdir(parents=True)

    def before(rank):
        original = GradientMechanism.release

        def release(self, *, step):
            (journal,) = job.checkpoints.glob("*/journal")
            assert len(journal.read_bytes().splitlines()) - 1 == step
            return original(self, step=step)

        GradientMechanism.release = release
        if rank:
            sys.addaudithook(_refuse_writes_below(str(tmp_path / "job")))

    ended = train_as(2, job, supervised, folder=tmp_path / "said", before=before)
    assert ended.codes == [0, 0], ended.said
    assert "written by" not in "".join(ended.said)
    key = load_state(job.output)["privacy"]["key_id"]
    assert len(list(job.checkpoints.glob("*/key"))) == 1
    assert key in next(job.checkpoints.glob("*/journal")).read_text()


def _refuse_writes_below(folder):
    def hook(event, arguments):
        path = str(arguments[0]) if arguments else ""
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and path.startswith(folder):
            print(f"written by the second process: {event} {path}", flush=True)
            os._exit(99)

    return hook


def test_processes_that_drift_apart_stop_and_keep_the_last_checkpoint(tmp_path, tiny_base, tiny_dataset):
    def before(rank):
        steps = iter(range(1, 100))
        original = torch.optim.AdamW.step

        def step(self):
            original(self)
            if next(steps) == 3 and rank == 1:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].view(-1)[0] += 1e-6

        torch.optim.AdamW.step = step

    job = job_in(tmp_path, tiny_base, tiny_dataset, checkpoint_steps=2, sync_steps=1)
    ended = train_as(2, job, supervised, folder=tmp_path / "said", before=before)
    assert ended.codes == [1, EXIT_PEER]
    assert "weights and optimizer after step 3 of process 1 differ from those of process 0" in ended.said[0]
    assert "Traceback" not in "".join(ended.said)
    assert [path.name for path in job.checkpoints.glob("*/*.pt")] == ["checkpoint_step_2.pt"]
    assert not job.output.exists()
    # Without a comparison before, the one before the next checkpoint finds it.
    late = job_in(tmp_path / "late", tiny_base, tiny_dataset, checkpoint_steps=2, sync_steps=100)
    ended = train_as(2, late, supervised, folder=tmp_path / "said", before=before)
    assert "after step 4 of process 1 differ" in ended.said[0]
    assert [path.name for path in late.checkpoints.glob("*/*.pt")] == ["checkpoint_step_2.pt"]


def dies_in_step(number, how, *, rank=1):
    """Make process `rank` die in the middle of a step."""

    def before(own):
        original = TrainingLoop.differentiate

        def differentiate(self, examples, *, step):
            result = original(self, examples, step=step)
            if own == rank and step == number:
                how()
            return result

        TrainingLoop.differentiate = differentiate

    return before


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_stops_the_others_which_say_so(tmp_path, tiny_base, tiny_dataset, rank):
    job = job_in(tmp_path, tiny_base, tiny_dataset, checkpoint_steps=2)
    begun = time.monotonic()
    ended = train_as(3, job, supervised, folder=tmp_path / "said", before=dies_in_step(4, kill_itself, rank=rank))
    assert time.monotonic() - begun < 30
    assert ended.codes == [-signal.SIGKILL if other == rank else EXIT_PEER for other in range(3)]
    assert "another one ended" in ended.said[1 - rank]
    assert "Traceback" not in "".join(ended.said)
    assert [path.name for path in job.checkpoints.glob("*/*.pt")] == ["checkpoint_step_2.pt"]
    state = json.loads((job.output.parent / "state.json").read_text())
    assert state["state"] == ("failed" if rank else "running")  # a killed first process cannot print a message


def test_a_signal_to_one_process_saves_and_ends_all_of_them_and_the_run_goes_on_exactly(
    tmp_path, tiny_base, tiny_dataset
):
    whole, broken = (
        job_in(tmp_path / name, tiny_base, tiny_dataset, privacy=REPRODUCIBLE) for name in ("whole", "broken")
    )
    assert train_as(2, whole, supervised, folder=tmp_path / "said").codes == [0, 0]
    before = dies_in_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = train_as(2, broken, supervised, folder=tmp_path / "said", before=before)
    assert ended.codes == [EXIT_INTERRUPTED] * 2 == [EXIT_STOPPED] * 2
    assert "interrupted: received SIGTERM; saved after step" in ended.said[0]
    newest = CheckpointFolder(broken.checkpoints, fingerprint=next(broken.checkpoints.glob("*/")).name, keep=1)
    assert newest.newest_step in (2, 3)
    assert train_as(2, broken, supervised, folder=tmp_path / "said").codes == [0, 0]
    assert comparable(load_state(broken.output)) == comparable(load_state(whole.output))


def test_a_process_without_memory_ends_all_of_them_after_a_save(tmp_path, tiny_base, tiny_dataset):
    def fail():
        raise torch.OutOfMemoryError("no memory left")

    job = job_in(tmp_path, tiny_base, tiny_dataset, checkpoint_steps=100)
    ended = train_as(2, job, supervised, folder=tmp_path / "said", before=dies_in_step(4, fail))
    assert ended.codes == [1, 1]
    assert "out of memory: saved after step 3" in ended.said[0]
    assert [path.name for path in job.checkpoints.glob("*/*.pt")] == ["checkpoint_step_3.pt"]
    assert train_as(2, job, supervised, folder=tmp_path / "said").codes == [0, 0]


def test_a_mistake_that_one_process_meets_is_told_once_and_ends_all(tmp_path, tiny_base, tiny_dataset):
    def fail():
        raise UserError("the reward is not a number")

    job = job_in(tmp_path, tiny_base, tiny_dataset)
    ended = train_as(3, job, supervised, folder=tmp_path / "said", before=dies_in_step(2, fail))
    assert ended.codes == [EXIT_PEER, 1, EXIT_PEER]
    assert "error: the reward is not a number" in ended.said[1]
    assert "process 2 of 3 stopped because process 1 did: the reward is not a number" in ended.said[2]


def test_processes_with_other_data_are_refused(tmp_path, tiny_base, tiny_dataset):
    """Their fingerprints differ, as they would with other devices or libraries."""
    jobs = [job_in(tmp_path, tiny_base, tiny_dataset, max_steps=steps) for steps in (2, 3)]

    def work(rank):
        return reports_user_errors(train_job)(jobs[rank], supervised)

    ended = Forked(work, count=2, folder=tmp_path / "said").wait()
    assert ended.codes == [1, EXIT_PEER]
    assert not list(jobs[0].checkpoints.glob("*/"))
    assert "settings, data, libraries or hardware of process 1 differ from those of process 0" in ended.said[0]


def test_a_job_that_was_not_started_as_it_is_configured_is_refused(tmp_path, tiny_base, tiny_dataset):
    with pytest.raises(UserError, match=r"processes_per_job is 2, but this job was started as 1: .*launcher\.py"):
        train(job_in(tmp_path, tiny_base, tiny_dataset, processes_per_job=2))


def test_a_process_that_is_not_told_its_place_is_refused(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK does not say which of them this one is"):
        train(job_in(tmp_path, tiny_base, tiny_dataset))


def test_processes_wait_no_longer_than_they_are_told(tmp_path):
    def work(rank):
        from sealed_experts.training.processes import PeerError, joined

        with joined(timeout_minutes=1 / 60) as processes:
            processes.exchange(rank)
            if rank:
                time.sleep(4)  # alive, but busy
                return 0
            with pytest.raises(PeerError, match="did not answer in time"):
                processes.exchange(rank)
            return 7

    ended = Forked(work, count=2, folder=tmp_path).wait()
    assert ended.codes[0] == 7, ended.said


def test_a_group_is_what_its_name_says():
    group = ProcessGroup(rank=1, count=3)
    assert (group.share(range(7)), group.is_first) == ([1, 4], False)
