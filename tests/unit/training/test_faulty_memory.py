"""No memory left: a real limit on a real process gives a one-line message, and the last complete state is on disk."""

import gc
import json
import subprocess
import sys

import pytest
import torch

from sealed_experts.errors import UserError, is_out_of_memory, reports_user_errors
from sealed_experts.training import stage as stage_module
from sealed_experts.training.continuation import CurveFrom
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.processes import OutOfMemoryTogether
from sealed_experts.training.progress import ProgressFiles
from tests.conftest import ROOT
from tests.unit.training.test_stage import PLAIN, comparable, make_job, share_key, train

# From its ninth physical batch on, this trainer's process must not grow any more, and then it needs 256 MB.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from tests.unit.training.test_stage import PLAIN, make_job, supervised
from sealed_experts.errors import reports_user_errors
from sealed_experts.training.command import train_job
from sealed_experts.training.objectives.sft import SupervisedFineTuning

original, calls = SupervisedFineTuning.per_example_loss, iter(range(10**6))

def hungry(self, model, batch, constants):
    if next(calls) == 8:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * 2**20,) * 2)
        torch.ones(2**26)
    return original(self, model, batch, constants)

SupervisedFineTuning.per_example_loss = hungry
folder, base, dataset = map(Path, sys.argv[1:])
job = make_job(folder, base, dataset, privacy=PLAIN, checkpoint_steps=100)
sys.exit(reports_user_errors(lambda: train_job(job, supervised))())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory")
def test_a_process_that_may_not_grow_saves_and_ends_with_one_line(tmp_path, tiny_base, tiny_dataset):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "run", tiny_base, tiny_dataset],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert said.startswith("error: the device or the machine ran out of memory")
    assert "Traceback" not in done.stderr
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset, privacy=PLAIN)
    assert "out of memory" in json.loads((job.output.parent / "state.json").read_text())["error"]
    (newest,) = job.checkpoints.glob("*/checkpoint_step_*.pt")
    step = int(newest.stem.rpartition("_")[2])
    assert f"out of memory: saved after step {step}" in done.stdout
    assert 0 < step < 6
    whole = make_job(tmp_path / "whole", tiny_base, tiny_dataset, privacy=PLAIN)
    assert comparable(train(job)) == comparable(train(whole))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_base, tiny_dataset):
    """An uninterrupted run in release mode, and its adapter file."""
    job = make_job(tmp_path_factory.mktemp("whole"), tiny_base, tiny_dataset)
    return job, train(job)


@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize(
    ("owner", "name", "call", "saved"),
    [
        (CurveFrom, "epsilon_at", 3, 2),
        (SupervisedFineTuning, "figures", 3, 2),
        (ProgressFiles, "log", 4, 3),  # the first belongs to a validation
        (ProgressFiles, "log", 5, 3),  # and so does the fifth
    ],
)
def test_a_step_without_memory_for_its_line_is_logged_all_the_same_once_the_run_goes_on(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, whole, owner, name, call, saved
):
    """A bug: the step was saved but its line was not, and the resumed run never wrote it."""
    monkeypatch.setattr(stage_module, "check_gradients", lambda **_: None)  # slow, and not part of this test
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    share_key(job, whole[0])
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def crowded(*arguments, **keywords):
        if next(calls) == call:
            raise MemoryError
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crowded)
        with pytest.raises(UserError, match="ran out of memory"):
            train(job)
    assert max(int(path.stem.rpartition("_")[2]) for path in job.checkpoints.glob("*/*.pt")) == saved
    assert comparable(train(job)) == comparable(whole[1])
    lines = [json.loads(line) for line in (job.output.parent / "metrics.jsonl").read_text().splitlines()]
    assert comparable(lines) == comparable(whole[1]["history"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (OutOfMemoryTogether("another process"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("unable to mmap 64 bytes from file <model.safetensors>: Cannot allocate memory (12)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes do not match"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=repr,
)
def test_only_what_is_out_of_memory_is_taken_for_it(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_defect_keeps_its_traceback():
    def main():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        reports_user_errors(main)()
