"""Continue a run that began with another number of processes, and count the privacy of both.

The runs of a stage form one chain. Each continues from the last run, even if that run saved nothing.

Another number of processes adds up floats in another order. The same noise on other sums would be a second release.
So the new run starts from the checkpoint under a new fingerprint. In release mode it also draws a new key, and ε
composes what was noised under each key. Without privacy, and in reproducible mode, the key stays: nothing is released
under a secret key.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import BudgetCurve
from sealed_experts.privacy.ledger.events import GaussianEvent, events_from_json
from sealed_experts.privacy.ledger.journal import Journal, Recorded, check_reaches, recorded
from sealed_experts.privacy.ledger.receipt import stage_receipt
from sealed_experts.privacy.plan import PrivacyPlan
from sealed_experts.training.checkpoints import CheckpointFolder, key_id
from sealed_experts.training.environment import without_processes
from sealed_experts.training.other_runs import read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """From where a run continues.

    Attributes:
        fingerprint: fingerprint of the previous run.
        step: the last step that is taken over from it; 0 for none.
        processes: how many processes the previous run had.
        spent: what the previous run and those before it have noised, each under its own key, oldest first.
        earlier: the runs before the previous one, oldest first. They stay listed even if their folders are deleted.
    """

    fingerprint: str
    step: int
    processes: int
    spent: tuple[GaussianEvent, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def passed(self) -> tuple[str, ...]:
        """All earlier runs of the chain."""
        return (*self.earlier, self.fingerprint)

    def announcement(self, *, processes: int, key_id: str) -> str:
        """Return the line for the log of a run that continues with `processes` and the key `key_id`."""
        run = f"the run with processes: {self.processes}"
        if self.step:
            text = f"going on after step {self.step} of {run}"
        else:
            text = f"this stage starts at its first step: {run} holds no checkpoint"
        text += f"; now processes: {processes}"
        if any(event.key_id != key_id for event in self.spent):
            text += "; the noise has a new key, and ε counts what was noised under each"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return this object as plain data."""
        plain = {"spent": [event.to_json() for event in self.spent], "earlier": list(self.earlier)}
        return {**dataclasses.asdict(self), **plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> "Continuation | None":
        """Rebuild the object from the data of `to_json`."""
        if data is None:
            return None
        return cls(**{**data, "spent": events_from_json(data["spent"]), "earlier": tuple(data.get("earlier", ()))})


def find_continuation(
    root: Path, *, subject: Mapping[str, Any], environment: Mapping[str, Any], plan: PrivacyPlan | None
) -> Continuation | None:
    """Return from where the run of this subject and environment continues; None if it starts a new chain.

    A run continues from the last run of the chain. If the last run has this environment, it is resumed itself.

    Raises:
        UserError: the checkpoints, the key or the journal of the previous run cannot be read, or one of them is gone.
    """
    last = _last_run(root, subject=subject, environment=environment)
    if last is None:
        return None
    folder, run = last
    before = Continuation.from_json(run.get("continues"))
    if run["environment"] == environment:
        return before
    journal = journal_of(folder, before=before, plan=plan) if plan else None
    if before is not None and folder.newest_step < 0:
        take_over(before, root=root, folder=folder)
    state = folder.load_newest()
    step = state["step"] if state else 0
    spent = before.spent if before else ()
    if plan is not None and journal is not None:
        check_reaches(folder.journal, last=journal.last_step, step=step)
        # Count also steps whose results reached no checkpoint: somebody may have seen them.
        spent = (*spent, plan.event(journal.steps, key_id=journal.key_id)) if journal.steps else spent
    return Continuation(
        fingerprint=folder.fingerprint,
        step=step,
        processes=int(run["environment"]["processes"]),
        spent=spent,
        earlier=before.passed if before else (),
    )


def _last_run(
    root: Path, *, subject: Mapping[str, Any], environment: Mapping[str, Any]
) -> tuple[CheckpointFolder, dict[str, Any]] | None:
    """Return the last run of the chain, as its folder and its run.json.

    The runs of a chain differ at most in the number of processes.
    """
    runs = {path.parent.name: read_run(path) for path in sorted(root.glob("*/run.json"))}
    runs = {name: run for name, run in runs.items() if run["subject"] == subject}
    origins = [Continuation.from_json(run.get("continues")) for run in runs.values()]
    passed = {name for origin in origins if origin for name in origin.passed}
    last = [
        (CheckpointFolder(root, fingerprint=name, keep=1), run)
        for name, run in runs.items()
        if name not in passed and without_processes(run["environment"]) == without_processes(environment)
    ]
    # There are several only if somebody has put a folder back.
    return max(last, key=lambda one: (one[0].newest_step, one[1]["environment"] == environment), default=None)


def journal_of(folder: CheckpointFolder, *, before: Continuation | None, plan: PrivacyPlan) -> Recorded:
    """Return the content of the journal of a private run that has begun.

    Args:
        before: from where that run continued.

    Raises:
        UserError: the journal is gone or damaged, or does not belong to the key in the same folder.
    """
    if not folder.journal.exists():
        check_reaches(folder.journal, last=before.step if before else 0, step=folder.newest_step)
        raise UserError(
            f"{folder.journal} is missing, but this run has begun with it: restore it, or delete its folder to start "
            "again under a new key"
        )
    key = key_id(folder.secret_key()) if plan.mode == "release" else None
    return recorded(folder.journal, fingerprint=folder.fingerprint, key_id=key)


def take_over(continuation: Continuation, *, root: Path, folder: CheckpointFolder) -> None:
    """Copy the state of the previous run into the folder of the new run.

    Raises:
        UserError: that state is gone or damaged.
    """
    if not continuation.step:
        return
    before = CheckpointFolder(root, fingerprint=continuation.fingerprint, keep=1)
    try:
        state = before.load(continuation.step)
    except UserError as error:
        raise UserError(
            f"{error}. The run in {folder.path} goes on from it, and holds no checkpoint of its own: restore one of "
            "the two, or delete that folder to go on from earlier runs"
        ) from error
    folder.save(state, step=continuation.step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accounts:
    """How the steps of a private run are counted, whether it continues another run or not.

    Attributes:
        plan: the plan of the whole stage, as if it were one run.
        key_id: name of this run's key.
        prior: what earlier stages have spent.
        before: from where this run continues; None if it starts a new chain.
    """

    plan: PrivacyPlan
    key_id: str
    prior: tuple[GaussianEvent, ...]
    before: Continuation | None

    @property
    def first_step(self) -> int:
        """The first step of this run's journal."""
        return self.before.step + 1 if self.before else 1

    @property
    def total_steps(self) -> int:
        """The last step: that of the plan, or an earlier one if repeated steps have used up more of the budget."""
        if self.plan.mode != "release" or not self._spent:
            return self.plan.steps_within_budget
        left = BudgetCurve((*self.prior, *self._spent), self._plan_of_the_rest()).steps_within()
        return min(self.plan.steps_within_budget, self._begun + left)

    @property
    def stopped_reason(self) -> str:
        """Why the stage ends at `total_steps`: `max_steps` or `privacy_budget`."""
        return "max_steps" if self.total_steps == self.plan.max_steps else "privacy_budget"

    def curve(self) -> BudgetCurve | None:
        """Return the curve of claimed ε by step; None in reproducible mode, where the seed reveals the noise."""
        if self.plan.mode != "release":
            return None
        return CurveFrom((*self.prior, *self._spent), self.plan, begun=self._begun)

    def receipt(
        self, *, journal: Journal | None, step: int, prior: Mapping[str, Any] | None, public: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the stage's receipt after `step`.

        Args:
            journal: the journal of this run; None in a process that does not hold it.
            prior: the joint receipt of all adapters that the stage learned from.
            public: lines about what else is treated as public.
        """
        known = step if journal is None else max(journal.next_step - 1, step)
        return stage_receipt(
            self.plan,
            steps=max(known - self._begun, self._repeated),
            key_id=self.key_id,
            prior=prior,
            spent=self._spent,
            public=public,
        )

    @property
    def _spent(self) -> tuple[GaussianEvent, ...]:
        """Events noised under other keys."""
        return tuple(event for event in self._all_spent if event.key_id != self.key_id)

    @property
    def _repeated(self) -> int:
        """Earlier steps under this same key (in reproducible mode)."""
        return max((event.steps for event in self._all_spent if event.key_id == self.key_id), default=0)

    @property
    def _all_spent(self) -> tuple[GaussianEvent, ...]:
        return self.before.spent if self.before else ()

    @property
    def _begun(self) -> int:
        """Steps of the taken-over state that were noised under other keys."""
        return self.before.step if self.before and not self._repeated else 0

    def _plan_of_the_rest(self) -> PrivacyPlan:
        return dataclasses.replace(self.plan, max_steps=self.plan.max_steps - self._begun, steps_within_budget=0)


class CurveFrom(BudgetCurve):
    """ε by the step of the stage, for a run whose own steps began after step `begun` of the stage."""

    def __init__(self, prior_events: Sequence[GaussianEvent], plan: PrivacyPlan, *, begun: int) -> None:
        super().__init__(prior_events, plan)
        self._begun = begun

    def epsilon_at(self, steps: int) -> float:
        """Return the joint ε after step `steps` of the stage."""
        return super().epsilon_at(steps - self._begun)
