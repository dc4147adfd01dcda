"""Runs of one stage with changing numbers of processes, killed anywhere: one chain, and every step is counted.

The trainer is a stand-in without a model. Like a stage, it settles its run, writes its journal and saves its steps.
"""

import itertools
import json
import os
import random
import shutil
import types

import pytest

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.journal import Journal, recorded
from sealed_experts.privacy.plan import plan_stage
from sealed_experts.training import run as run_module
from sealed_experts.training.checkpoints import CheckpointFolder
from sealed_experts.training.run import settle_run
from tests.unit.training.test_stage import PRIVATE

LAST = 4
SUBJECT = {"adapter_name": "tiny_expert"}
MOMENTS = {
    "private": [
        *[(CheckpointFolder, name) for name in ("secret_key", "save", "describe")],
        (Journal, "record"),
        (run_module, "take_over"),
        (run_module.Run, "begin_journal"),
    ],
    "plain": [(CheckpointFolder, "save"), (CheckpointFolder, "describe"), (run_module, "take_over")],
}


class _Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def plan():
    return plan_stage(PRIVATE, stage="sft", units=60, unit="record", expected_batch_size=8, max_steps=LAST)


@pytest.fixture(autouse=True)
def _without_a_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def job(root):
    settings = types.SimpleNamespace(keep_checkpoints=2)
    return types.SimpleNamespace(checkpoints=root, expert="tiny_expert", stage="sft", seed=3, settings=settings)


def attempt(root, *, processes, plan, saves_every=2):
    """Train as a stage does. Return the run, the step after which it began, and the steps in its state."""
    environment = {"device": "cpu", "processes": processes}
    run = settle_run(job(root), subject=SUBJECT, environment=environment, plan=plan, prior_events=(), max_steps=LAST)
    with run.journal(writes=True) as journal:
        state = run.checkpoints.load_newest() or {"step": 0, "seen": []}
        begun = state["step"]
        if journal is not None and begun:
            journal.check_reaches(begun)
        for step in range(begun + 1, LAST + 1):
            if journal is not None:
                journal.record(step)
            state = {"step": step, "seen": [*state["seen"], step]}
            if step % saves_every == 0:
                run.checkpoints.save(state, step=step)
    return run, begun, state["seen"]


def killed(root, *, at, moments, **named):
    """Train, killed before (even `at`) or after (odd) one of `moments`; return whether it was killed."""
    passed = itertools.count()

    def passes():
        if next(passed) == at:
            raise _Killed

    def watched(original):
        def call(*arguments, **keywords):
            passes()
            result = original(*arguments, **keywords)
            passes()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in moments:
            patch.setattr(owner, name, watched(getattr(owner, name)))
        try:
            attempt(root, **named)
        except _Killed:
            return True
    return False


def runs(root):
    """Return the content of every run.json, by folder name."""
    return {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/run.json")}


def newest(root):
    return max((int(path.stem.rpartition("_")[2]) for path in root.glob("*/checkpoint_step_*.pt")), default=0)


def check_chain(root, *, processes, plan):
    """Train to the end with `processes`: no saved step is lost, and every noised step is counted."""
    saved = newest(root)
    run, begun, seen = attempt(root, processes=processes, plan=plan)
    assert begun >= saved
    assert seen == list(range(1, LAST + 1))
    origins = {name: described.get("continues") for name, described in runs(root).items()}
    assert sum(origin is None for origin in origins.values()) == 1
    followed = [origin["fingerprint"] for origin in origins.values() if origin]
    assert len(followed) == len(set(followed))  # each run is continued once
    if plan is None:
        return
    before = run.accounts.before
    counted = {event.key_id: event.steps for event in (before.spent if before else ())}
    for folder in (path.parent for path in root.glob("*/journal")):
        journal = recorded(folder / "journal", fingerprint=folder.name)
        if folder.name == run.fingerprint:
            assert journal.key_id not in counted
            assert run.accounts.first_step == journal.first_step
        elif journal.steps:
            assert counted.pop(journal.key_id) == journal.steps
    assert not counted


@pytest.mark.parametrize("kind", ["private", "plain"])
@pytest.mark.parametrize("counts", ["121", "212", "112", "1231", "2121"])
def test_a_chain_of_runs_killed_anywhere_stays_one_chain_and_counts_every_step(tmp_path, plan, counts, kind, capsys):
    """A bug: an empty run of the same number counted as the newest, and training restarted silently."""
    *interrupted, last = map(int, counts)
    chosen = plan if kind == "private" else None
    moments = list(itertools.product(range(26 if chosen else 10), repeat=len(interrupted)))
    for index, kills in enumerate(random.Random(counts).sample(moments, k=40)):
        root = tmp_path / str(index)
        for processes, at in zip(interrupted, kills, strict=True):
            killed(root, at=at, moments=MOMENTS[kind], processes=processes, plan=chosen)
        first = bool(runs(root)) and not newest(root)
        capsys.readouterr()
        check_chain(root, processes=last, plan=chosen)
        assert ("this stage starts at its first step: " in capsys.readouterr().out) == first


@pytest.fixture
def stopped(tmp_path, plan):
    """A private run of one process that was killed after step 3, with a checkpoint of step 2."""
    assert killed(tmp_path, at=5, moments=[(Journal, "record")], processes=1, plan=plan)
    (name,) = runs(tmp_path)
    folder = CheckpointFolder(tmp_path, fingerprint=name, keep=2)
    assert (recorded(folder.journal, fingerprint=name).steps, folder.newest_step) == (3, 2)
    return folder


@pytest.mark.parametrize("lost", ["deleted", "cut", "emptied"])
def test_a_lost_or_shortened_journal_is_told_whatever_the_number_of_processes(tmp_path, plan, stopped, lost):
    """A bug: with another number the steps did not count; the refusal for the same one left an empty journal."""
    lines = stopped.journal.read_bytes().splitlines(keepends=True)
    stopped.journal.unlink()
    if lost != "deleted":
        stopped.journal.write_bytes(b"".join(lines[: 1 if lost == "emptied" else 2]))
    last = 1 if lost == "cut" else 0
    for processes in (1, 2, 2, 1, 3):
        with pytest.raises(UserError, match=f"journal of this run goes up to step {last}, but its checkpoint is of"):
            attempt(tmp_path, processes=processes, plan=plan)
        assert stopped.journal.exists() == (lost != "deleted")
    stopped.journal.write_bytes(b"".join(lines))
    check_chain(tmp_path, processes=2, plan=plan)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_journal_that_is_gone_before_the_first_checkpoint_is_told(tmp_path, plan, stopped, processes):
    whole = stopped.journal.read_bytes()
    for lost in (*stopped.path.glob("checkpoint_step_*.pt"), stopped.journal):
        lost.unlink()
    with pytest.raises(UserError, match="journal is missing, but this run has begun with it"):
        attempt(tmp_path, processes=processes, plan=plan)
    stopped.journal.write_bytes(whole)
    check_chain(tmp_path, processes=processes, plan=plan)


def test_a_journal_without_its_description_is_not_made_anew_for_a_state(tmp_path, plan, stopped):
    for name in ("run.json", "journal"):
        (stopped.path / name).unlink()
    with pytest.raises(UserError, match="journal of this run goes up to step 0, but its checkpoint is of step 2"):
        attempt(tmp_path, processes=1, plan=plan)
    assert not stopped.journal.exists()


@pytest.mark.parametrize("name", ["fingerprint", "key_id"])
def test_the_journal_of_another_run_counts_for_no_other_number_of_processes(tmp_path, plan, stopped, name):
    header, *steps = stopped.journal.read_bytes().splitlines(keepends=True)
    header = json.dumps({**json.loads(header), name: "0" * 32}).encode() + b"\n"
    stopped.journal.write_bytes(b"".join([header, *steps]))
    with pytest.raises(UserError, match=f"belongs to another run: its {name} is 0000"):
        attempt(tmp_path, processes=2, plan=plan)


def test_a_run_that_has_lost_its_checkpoints_says_that_it_starts_again(tmp_path, plan, stopped, capsys):
    """A bug: it repeated its steps silently."""
    for path in stopped.path.glob("checkpoint_step_*.pt"):
        path.unlink()
    capsys.readouterr()
    check_chain(tmp_path, processes=1, plan=plan)
    said = capsys.readouterr().out
    assert f"this stage starts at its first step: {stopped.path} is of this run, but holds no checkpoint" in said
    assert "the 3 steps in its journal are repeated with the same noise, and count once" in said


def test_a_run_that_has_lost_what_it_took_over_takes_it_over_again(tmp_path, plan, stopped, capsys):
    """A bug: its journal begins after that step, and an earlier start gave a traceback."""
    run, _, _ = attempt(tmp_path, processes=2, plan=plan)
    for path in run.checkpoints.path.glob("checkpoint_step_*.pt"):
        path.unlink()
    capsys.readouterr()
    again, begun, _ = attempt(tmp_path, processes=2, plan=plan)
    assert (again.fingerprint, begun) == (run.fingerprint, 2)
    assert "going on after step 2 of the run with processes: 1; now processes: 2" in capsys.readouterr().out
    for path in tmp_path.glob("*/checkpoint_step_*.pt"):
        path.unlink()
    for processes in (2, 3):
        with pytest.raises(UserError, match=r"step_2\.pt does not exist\. The run in .* goes on from it, and holds no"):
            attempt(tmp_path, processes=processes, plan=plan)


def test_a_run_that_was_gone_on_from_is_never_gone_on_with(tmp_path, plan, stopped):
    """A bug: deleting the run in between made it the last run again, and later runs were not counted."""
    second, _, _ = attempt(tmp_path, processes=2, plan=plan)
    third, _, _ = attempt(tmp_path, processes=1, plan=plan)
    shutil.rmtree(second.checkpoints.path)
    assert attempt(tmp_path, processes=1, plan=plan)[0].fingerprint == third.fingerprint
    fourth, _, _ = attempt(tmp_path, processes=3, plan=plan)
    assert [event.steps for event in fourth.accounts.before.spent] == [3, 2]


def test_a_death_while_other_runs_are_told_of_silences_nothing(tmp_path, monkeypatch, capsys):
    attempt(tmp_path, processes=1, plan=None)
    monkeypatch.setitem(SUBJECT, "seed", 4)
    assert killed(tmp_path, at=1, moments=[(CheckpointFolder, "describe")], processes=1, plan=None)
    assert len(runs(tmp_path)) == 2
    capsys.readouterr()
    attempt(tmp_path, processes=1, plan=None)
    assert f"holds a run up to step {LAST}, but of another seed" in capsys.readouterr().out


def test_processes_that_only_join_make_and_say_nothing(tmp_path, plan, capsys):
    assert killed(tmp_path, at=1, moments=[(CheckpointFolder, "describe")], processes=2, plan=plan)
    ((name, described),) = runs(tmp_path).items()
    before = {path: path.read_bytes() for path in (tmp_path / name).iterdir()}
    capsys.readouterr()
    run = settle_run(
        job(tmp_path),
        subject=SUBJECT,
        environment=described["environment"],
        plan=plan,
        prior_events=(),
        max_steps=LAST,
        begins=False,
    )
    assert run.fingerprint == name
    assert {path: path.read_bytes() for path in (tmp_path / name).iterdir()} == before
    assert capsys.readouterr() == ("", "")
