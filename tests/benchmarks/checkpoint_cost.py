"""What checkpoints cost, as a share of training time at the default interval.

Each contender is a process of its own: `sft` and `reinforce` are the trainings of the throughput benchmarks, saved
after every step to time a save; `small` takes steps of some milliseconds, the dearest case, at the default interval;
`large` saves, without training, an adapter of rank 64 on all linear layers of a model of 1.5 billion parameters.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rl_throughput
import sft_throughput

LARGE_TRAINABLES = 73_859_072
SMALL_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", required=True, choices=CONTENDERS)
    print(json.dumps(CONTENDERS[parser.parse_args().contender]()))


def estimated(train: Callable[[], object], *, stage: str) -> dict[str, float]:
    """Time steps and saves of a training that saves after every step, and reckon the share at the default interval."""
    from sealed_experts.training.loop import TrainingLoop
    from sealed_experts.training.objectives import STAGES

    defaults = STAGES[stage]()
    steps, saves = _timed(TrainingLoop, "train_step"), _timed(TrainingLoop, "_save")
    TrainingLoop.save_if_due = lambda self: self._save()  # type: ignore[method-assign]
    train()
    step, save = statistics.median(steps[1:]), statistics.median(saves)
    interval = min(defaults.checkpoint_steps * step, 60 * defaults.checkpoint_minutes)
    return {"step": step, "save": save, "interval": interval, "share": save / interval}


def small() -> dict[str, float]:
    """Train a tiny model at the default interval."""
    from tests.tiny import build_tiny_base, build_tiny_dataset
    from tests.unit.training.test_stage import make_job
    from tests.unit.training.test_stage import train as train_job

    from sealed_experts.privacy.settings import PrivacySettings
    from sealed_experts.training.loop import TrainingLoop
    from sealed_experts.training.objectives.sft import Sft

    every = Sft().checkpoint_steps
    saves, runs = _timed(TrainingLoop, "_save"), _timed(TrainingLoop, "train")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, dataset = build_tiny_base(folder / "base"), build_tiny_dataset(folder / "data")
        changes = {"max_steps": SMALL_STEPS, "batch_size": 1, "checkpoint_steps": every, "eval_steps": 10**6}
        train_job(make_job(folder, base, dataset, privacy=PrivacySettings(target_epsilon=1e6, delta=1e-5), **changes))
    return {
        "step": (runs[0] - sum(saves)) / SMALL_STEPS,
        "save": statistics.median(saves),
        "interval": every * runs[0] / SMALL_STEPS,
        "share": sum(saves) / runs[0],
    }


def large() -> dict[str, float]:
    """Save weights and optimizer of a large adapter; the shortest interval at which that is 1 %."""
    import torch

    from sealed_experts.training.checkpoints import CheckpointFolder

    tensors = {str(index): torch.randn(LARGE_TRAINABLES // 64) for index in range(64)}
    moments = {index: {"exp_avg": value.clone(), "exp_avg_sq": value.clone()} for index, value in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder), fingerprint="0" * 64, keep=2)
        saves = []
        for step in range(1, 4):
            start = time.perf_counter()
            checkpoints.save({"model_state_dict": tensors, "optimizer": moments, "history": []}, step=step)
            saves.append(time.perf_counter() - start)
    save = statistics.median(saves)
    return {"save": save, "interval": 100 * save, "share": 0.01}


def _timed(owner: Any, name: str) -> list[float]:
    original, seconds = getattr(owner, name), []

    def wrapper(self: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = original(self, *arguments)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, wrapper)
    return seconds


CONTENDERS = {
    "sft": lambda: estimated(lambda: sft_throughput.run_ours(private=True), stage="sft"),
    "reinforce": lambda: estimated(lambda: rl_throughput.run_ours(private=True), stage="reinforce"),
    "small": small,
    "large": large,
}


if __name__ == "__main__":
    sys.exit(main())
