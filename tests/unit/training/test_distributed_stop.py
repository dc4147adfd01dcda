"""Several processes are asked to stop, or run out of memory, at a bad moment: all stop and save, or none."""

import os
import signal

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.training import response
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.gradients import PlainGradients
from sealed_experts.training.interruption import EXIT_INTERRUPTED
from sealed_experts.training.launcher import EXIT_PEER
from sealed_experts.training.loop import TrainingLoop
from sealed_experts.training.processes import joined
from tests.distributed import train_as
from tests.unit.training.test_stage import PLAIN, comparable, make_job, supervised


def stops_itself(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def asked_before_its_first_step(rank):
    def before(own):
        original = TrainingLoop.resume

        def resume(self):
            original(self)
            if own == rank:
                stops_itself()

        TrainingLoop.resume = resume

    return before


def asked_in_its_second_validation(own):
    original, batches = response.response_logits, []

    def logits(model, batch):
        if not torch.is_grad_enabled():
            assert own == 0
            assert len(batches) == len({id(batch) for batch in batches}), "a batch after the signal"
            batches.append(batch)
            if len(batches) > 1 and batch is batches[0]:
                stops_itself()
        return original(model, batch)

    response.response_logits = logits


def test_a_signal_that_one_process_sees_before_the_others_start_or_validate_stops_all_of_them(
    tmp_path, tiny_base, tiny_dataset
):
    """A bug: the message blamed the hardware, because one saved while the other trained. Validation did not stop."""
    whole, broken = (
        make_job(tmp_path / name, tiny_base, tiny_dataset, privacy=PLAIN, max_steps=3, eval_steps=2)
        for name in ("whole", "broken")
    )
    assert train_as(2, whole, supervised, folder=tmp_path / "said").codes == [0, 0]
    for before, step in [
        (asked_before_its_first_step(1), 0),  # at the start
        (asked_before_its_first_step(0), 0),  # and when it continues
        (asked_in_its_second_validation, 2),
    ]:
        ended = train_as(2, broken, supervised, folder=tmp_path / "said", before=before)
        assert ended.codes == [EXIT_INTERRUPTED] * 2, ended.said
        assert f"interrupted: received SIGTERM; saved after step {step} of 3" in ended.said[0]
    assert train_as(2, broken, supervised, folder=tmp_path / "said").codes == [0, 0]
    assert comparable(load_state(broken.output)) == comparable(load_state(whole.output))


def test_a_process_without_memory_for_a_sum_ends_all_of_them_and_says_what_is_kept(tmp_path, tiny_base, tiny_dataset):
    """The others wait for its part, so their weights cannot be compared: nothing is saved."""

    def before(rank):
        original = PlainGradients.release

        def release(self, *, step):
            if rank == 0 and step == 4:
                raise torch.OutOfMemoryError("no memory left")
            return original(self, step=step)

        PlainGradients.release = release

    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=PLAIN, checkpoint_steps=2)
    ended = train_as(2, job, supervised, folder=tmp_path / "said", before=before)
    assert ended.codes == [1, EXIT_PEER]
    assert "out of memory while processes exchanged: the last checkpoint is kept" in ended.said[0]
    assert [path.name for path in job.checkpoints.glob("*/*.pt")] == ["checkpoint_step_2.pt"]


@pytest.mark.parametrize("size", ["", "two", "0", "-1", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, size):
    """A bug: it gave the traceback of a ValueError."""
    monkeypatch.setenv("WORLD_SIZE", size)
    with (
        pytest.raises(UserError, match=r"the variable WORLD_SIZE is .*, which is not a number of processes: unset it"),
        joined(timeout_minutes=1),
    ):
        pass


def test_a_place_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="RANK does not say which of them"), joined(timeout_minutes=1):
        pass
