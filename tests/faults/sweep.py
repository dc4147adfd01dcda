"""Kill a small real workflow at failure points and at random moments, and see that nothing is ever lost.

    python -m tests.faults.sweep --trainer 200 --power 60 --sealing 60 --workflow 20 --seed 0

Seed and numbers decide every trial; `--only TEXT` runs those alone whose line holds the text.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.forks import Fault, choose_faults
from tests.faults.jobs import Job, JobTrials
from tests.faults.killed_workflow import WorkflowTrials
from tests.faults.points import Operation
from tests.faults.powerloss import NAMES_FIRST, STRICT
from tests.faults.trainer import Stage
from tests.faults.trials import POLITE, Failed, TrainerTrials
from tests.workflow.conftest import TINY, Project, new_project
from tests.workflow.warm.server import load_libraries

STAGES = [("banking_expert", "sft"), ("banking_expert", "reinforce"), ("investment_expert", "sft")]
SEALING = [
    ("seal_package", "results/packages/banking_expert.tgsp"),
    ("seal_expert", "results/packages/banking_expert.expert"),
    ("assemble_moe", "results/moe/moe_config.json"),
]
ONE_RUN = 2.5  # seconds within which random moments lie


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One of them: the row of the table that it counts in, its line, and what it does."""

    row: str
    line: str
    run: Callable[[], None]


def configuration() -> dict[str, Any]:
    """Return the tiny project's: the first expert private under a secret key, the second not private."""
    tiny: dict[str, Any] = json.loads(json.dumps(TINY))
    tiny["defaults"]["privacy"]["mode"] = "release"
    tiny["defaults"]["sft"].update(max_steps=6, checkpoint_steps=2, eval_steps=3, keep_checkpoints=2)
    tiny["defaults"]["reinforce"].update(total_steps=4, checkpoint_steps=2)
    tiny["experts"]["investment_expert"]["privacy"] = {"enabled": False}
    return tiny


def prepared(folder: Path) -> Project:
    """Make a project with its base and data."""
    project = new_project(folder / "project", folder / "home")
    project.configure(configuration())
    data = [f"results/data/{name}/stats.json" for name in ("banking", "investment")]
    project.snakemake("results/base/demo/base.json", *data)
    os.environ.update(project.environment())
    return project


def trainer_trials(trials: TrainerTrials, *, count: int, seed: int) -> Iterator[Trial]:
    """Kill a stage: three times of four at failure points, each name of them at least once, else at random moments."""
    name, random_ = trials.stage.name, random.Random(f"{seed} {trials.stage.name}")
    signals: list[int] = [signal.SIGKILL] * 3 + list(POLITE)
    faults = choose_faults(trials.points, count=count - count // 4, signals=signals, random_=random_)
    for number, fault in enumerate(faults):
        # Each fifth draws its key anew, and is then held against a run that was given that key.
        whole = trials.key is not None and number % 5 == 0
        yield _at_point(name, number, fault, partial(trials.at_point, fault, whole=whole))
    for number in range(count // 4):
        seconds, sent = random_.uniform(0.0, ONE_RUN), random_.choice(signals)
        yield Trial(
            row=f"{name}: random moments",
            line=f"{name} {number}: {signal.Signals(sent).name} after {seconds:.3f} s",
            run=partial(trials.at_moment, seconds=seconds, number=sent),
        )


def sealing_trials(trials: JobTrials, *, count: int, seed: int) -> Iterator[Trial]:
    """Kill a job at failure points, and let it lose power after each second of them."""
    name, random_ = trials.job.name, random.Random(f"{seed} {trials.job.name}")
    signals: list[int] = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    for number, fault in enumerate(choose_faults(trials.points, count=count, signals=signals, random_=random_)):
        yield _at_point(name, number, fault, partial(trials.at_point, fault))
    for number in range(count // 2):
        yield _without_power(name, number, trials.operations, random_, trials.after_power_loss)


def power_trials(trials: TrainerTrials, *, count: int, seed: int) -> Iterator[Trial]:
    """Lose power after random operations of a recorded run."""
    if not count:
        return
    name, random_ = trials.stage.name, random.Random(f"{seed} power {trials.stage.name}")
    # Once with the key of the run to compare with, and once drawing its key: then that, too, can be lost.
    recordings = [trials.recording(whole=whole) for whole in ((False, True) if trials.key else (False,))]
    for number in range(count):
        start, operations = recordings[number // 2 % len(recordings)]
        run = partial(trials.after_power_loss, start=start, operations=operations)
        yield _without_power(name, number, operations, random_, run)


def _at_point(name: str, number: int, fault: Fault, run: Callable[[], None]) -> Trial:
    line = f"{name} {number}: {signal.Signals(fault.signal).name} {fault.when} {fault.name}"
    return Trial(row=f"{name}: failure points", line=line, run=run)


def _without_power(
    name: str, number: int, operations: list[Operation], random_: random.Random, run: Callable[..., None]
) -> Trial:
    """Return the trial that loses power after an operation drawn at random; `run` takes its `count` and `model`."""
    cut, model = random_.randrange(len(operations) + 1), (STRICT, NAMES_FIRST)[number % 2]
    last = operations[cut - 1].name if cut else "the start"
    line = f"{name} {number}: power lost after {last} ({model}, operation {cut} of {len(operations)})"
    return Trial(row=f"{name}: loss of power, {model}", line=line, run=partial(run, count=cut, model=model))


def all_trials(folder: Path, *, trainer: int, power: int, sealing: int, workflow: int, seed: int) -> Iterator[Trial]:
    """Yield every trial of a sweep, in order."""
    if trainer or power:
        project = prepared(folder)
        for place, (expert, stage) in enumerate(STAGES):
            trials = TrainerTrials(Stage(project, expert=expert, stage=stage), scratch=folder)
            yield from trainer_trials(trials, count=_share(trainer, place, of=len(STAGES)), seed=seed)
            yield from power_trials(trials, count=_share(power, place, of=len(STAGES)), seed=seed)
    if sealing or workflow:
        killed = WorkflowTrials(folder / "workflow")
        for place, (rule, output) in enumerate(SEALING):
            count = _share(sealing, place, of=len(SEALING))
            if count:
                job = Job(killed.finished, rule=rule, output=output)
                yield from sealing_trials(JobTrials(job, scratch=folder), count=count, seed=seed)
        for number, death in enumerate(killed.deaths(count=workflow, random_=random.Random(f"{seed} workflow"))):
            yield Trial(
                row=f"workflow: {death.victim}", line=f"workflow {number}: {death}", run=partial(killed.die, death)
            )


def _share(count: int, place: int, *, of: int) -> int:
    return count * (place + 1) // of - count * place // of


def sweep(trials: Iterator[Trial], *, only: str) -> int:
    """Run the trials, print a line each and the table; return how many failed."""
    rows: Counter[tuple[str, bool]] = Counter()
    begun = time.monotonic()
    for trial in trials:
        if only not in trial.line:
            continue
        try:
            trial.run()
        except (Failed, TimeoutError) as problem:
            rows[trial.row, False] += 1
            print(f"FAILED {trial.line}: {problem}", flush=True)
        else:
            rows[trial.row, True] += 1
            print(f"exact  {trial.line}", flush=True)
    print("\n| trials | ended exactly | failed |\n| --- | ---: | ---: |")
    for row in dict.fromkeys(row for row, _ in rows):
        print(f"| {row} | {rows[row, True]} | {rows[row, False]} |")
    failed = sum(count for (_, exact), count in rows.items() if not exact)
    print(f"| all | {rows.total() - failed} | {failed} |\n\n{time.monotonic() - begun:.0f} s", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep; return 1 if a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count, help_ in (
        ("trainer", 200, "kills of a trainer"),
        ("power", 60, "losses of power"),
        ("sealing", 60, "kills of sealing and assembly, and half as many losses of power"),
        ("workflow", 20, "kills of a whole workflow"),
        ("seed", 0, "what the trials are drawn from"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"{help_} (default {count})")
    parser.add_argument("--only", default="", metavar="TEXT", help="only trials whose line holds this")
    args = parser.parse_args(arguments)
    # A shell that starts this in the background has children ignore Ctrl-C, and so would the ones to be killed by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="faults ") as folder:
        counts = {name: getattr(args, name) for name in ("trainer", "power", "sealing", "workflow", "seed")}
        return 1 if sweep(all_trials(Path(folder), **counts), only=args.only) else 0


if __name__ == "__main__":
    sys.exit(main())
