"""Go on from a run that was begun with another number of processes, and count both.

The runs of a stage form one chain: each goes on from the last one there is, even from one that saved nothing.

Another number of processes adds up floats in another order, so the same noise would be a second release: the run goes
on from the checkpoint under a fingerprint of its own. In release mode it also draws a key of its own, and ε composes
what was noised under either. Without privacy, and in reproducible mode, the key stays: there is nothing to keep apart.
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
    """Where a run goes on.

    Attributes:
        fingerprint: of the run before it.
        step: the last step that is taken over; 0 for none.
        processes: how many that run had.
        spent: what the runs up to it have noised, each under its own key, oldest first.
        earlier: the runs that it went on from itself, oldest first: passed for good, even where one of them is deleted.
    """

    fingerprint: str
    step: int
    processes: int
    spent: tuple[GaussianEvent, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def passed(self) -> tuple[str, ...]:
        """All runs that lie behind."""
        return (*self.earlier, self.fingerprint)

    def announcement(self, *, processes: int, key_id: str) -> str:
        """Return what to tell whoever looks at the log of a run that goes on with `processes` and the key `key_id`."""
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
        """Return it as plain data."""
        plain = {"spent": [event.to_json() for event in self.spent], "earlier": list(self.earlier)}
        return {**dataclasses.asdict(self), **plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> "Continuation | None":
        """Rebuild what `to_json` returned."""
        if data is None:
            return None
        return cls(**{**data, "spent": events_from_json(data["spent"]), "earlier": tuple(data.get("earlier", ()))})


def find_continuation(
    root: Path, *, subject: Mapping[str, Any], environment: Mapping[str, Any], plan: PrivacyPlan | None
) -> Continuation | None:
    """Return what the run of this subject and environment goes on from; None for a run of its own beginning.

    Only the last run of the chain goes on. If that is one of this environment, it is resumed as it is.

    Raises:
        UserError: the checkpoints, the key or the journal of the run before cannot be read, or one of them is gone.
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
        # Also those whose results reached no checkpoint: they may have been seen.
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
    """Return the last of the runs that differ from this one in the number of processes at most, and what it is."""
    runs = {path.parent.name: read_run(path) for path in sorted(root.glob("*/run.json"))}
    runs = {name: run for name, run in runs.items() if run["subject"] == subject}
    origins = [Continuation.from_json(run.get("continues")) for run in runs.values()]
    passed = {name for origin in origins if origin for name in origin.passed}
    last = [
        (CheckpointFolder(root, fingerprint=name, keep=1), run)
        for name, run in runs.items()
        if name not in passed and without_processes(run["environment"]) == without_processes(environment)
    ]
    # More than one only where a person has put a folder back.
    return max(last, key=lambda one: (one[0].newest_step, one[1]["environment"] == environment), default=None)


def journal_of(folder: CheckpointFolder, *, before: Continuation | None, plan: PrivacyPlan) -> Recorded:
    """Return what the journal of a private run that has begun says.

    Args:
        before: what that run goes on from.

    Raises:
        UserError: it is gone or damaged, or does not belong to the key beside it.
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
    """Copy the state to go on from into the run's own folder.

    Raises:
        UserError: it is gone, or damaged.
    """
    if not continuation.step:
        return
    before = CheckpointFolder(root, fingerprint=continuation.fingerprint, keep=1)
    try:
        state = before.load(continuation.step)
    except UserError as error:
        raise UserError(
            f"{error}. The run in {folder.path} goes on from it, and holds no checkpoint of its own: restore one of "
            "the two, or delete that folder to go on from the runs before it"
        ) from error
    folder.save(state, step=continuation.step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accounts:
    """How the steps of a private run are counted, whether it goes on from another one or not.

    Attributes:
        plan: the stage's, as if it were one run.
        key_id: of this run's key.
        prior: what earlier stages have spent.
        before: the run that this one goes on from.
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
        """The last step: of the plan, or, after steps that were noised twice, of what is left of the budget."""
        if self.plan.mode != "release" or not self._spent:
            return self.plan.steps_within_budget
        left = BudgetCurve((*self.prior, *self._spent), self._plan_of_the_rest()).steps_within()
        return min(self.plan.steps_within_budget, self._begun + left)

    @property
    def stopped_reason(self) -> str:
        """Why the stage ends where it does: `max_steps` or `privacy_budget`."""
        return "max_steps" if self.total_steps == self.plan.max_steps else "privacy_budget"

    def curve(self) -> BudgetCurve | None:
        """Return the curve of claimed ε by step; none in reproducible mode, whose noise the seed reveals."""
        if self.plan.mode != "release":
            return None
        return _CurveFrom((*self.prior, *self._spent), self.plan, begun=self._begun)

    def receipt(
        self, *, journal: Journal | None, step: int, prior: Mapping[str, Any] | None, public: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the stage's receipt after `step`.

        Args:
            journal: this run's; None in a process that does not hold it.
            prior: the receipt of all adapters that the stage learned from.
            public: what else is treated as public.
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
        """What was noised under other keys."""
        return tuple(event for event in self._all_spent if event.key_id != self.key_id)

    @property
    def _repeated(self) -> int:
        """Steps before under this very key (in reproducible mode)."""
        return max((event.steps for event in self._all_spent if event.key_id == self.key_id), default=0)

    @property
    def _all_spent(self) -> tuple[GaussianEvent, ...]:
        return self.before.spent if self.before else ()

    @property
    def _begun(self) -> int:
        """Steps of the state that were noised under other keys."""
        return self.before.step if self.before and not self._repeated else 0

    def _plan_of_the_rest(self) -> PrivacyPlan:
        return dataclasses.replace(self.plan, max_steps=self.plan.max_steps - self._begun, steps_within_budget=0)


class _CurveFrom(BudgetCurve):
    """ε by the stage's step, where this plan's own steps began after `begun` of them."""

    def __init__(self, prior_events: Sequence[GaussianEvent], plan: PrivacyPlan, *, begun: int) -> None:
        super().__init__(prior_events, plan)
        self._begun = begun

    def epsilon_at(self, steps: int) -> float:
        """Return the joint ε after step `steps` of the stage."""
        return super().epsilon_at(steps - self._begun)
