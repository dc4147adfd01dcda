"""Which run a stage is: its fingerprint, its folder, its key, and what it counts."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.privacy.ledger.accounting import BudgetCurve
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.journal import Journal
from sealed_experts.privacy.plan import PrivacyPlan
from sealed_experts.privacy.streams import Stream, derive_key
from sealed_experts.training.checkpoints import CheckpointFolder, key_id
from sealed_experts.training.continuation import Accounts, Continuation, find_continuation, journal_of, take_over
from sealed_experts.training.environment import fingerprint, without_processes
from sealed_experts.training.job import StageJob
from sealed_experts.training.other_runs import tell_of_others


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a stage. Without privacy it has no accounts; `max_steps` are those that the settings ask for."""

    fingerprint: str
    checkpoints: CheckpointFolder
    key: bytes
    accounts: Accounts | None
    max_steps: int

    @functools.cached_property
    def stream(self) -> Stream:
        """The stream of its draws and its noise."""
        return Stream(self.key)

    @property
    def total_steps(self) -> int:
        """The last step."""
        return self.accounts.total_steps if self.accounts else self.max_steps

    @property
    def stopped_reason(self) -> str:
        """Why the stage ends at `total_steps`."""
        return self.accounts.stopped_reason if self.accounts else "max_steps"

    @property
    def curve(self) -> BudgetCurve | None:
        """The curve of claimed ε by step."""
        return self.accounts.curve() if self.accounts else None

    def journal(self, *, writes: bool) -> contextlib.AbstractContextManager[Journal | None]:
        """Return the journal, open; None in a process that does not write.

        Raises:
            UserError: it is gone or damaged, or not this run's.
        """
        if self.accounts is None or not writes:
            return contextlib.nullcontext()
        journal_of(self.checkpoints, before=self.accounts.before, plan=self.accounts.plan)  # never made anew
        return self._open_journal(self.accounts)

    def begin_journal(self) -> int:
        """Start the journal of a new run; return how many steps that of this run holds.

        Raises:
            UserError: it is gone or damaged, or not this run's.
        """
        if self.accounts is None:
            return 0
        folder = self.checkpoints
        # A state of its own was journalled: then the journal was lost.
        new = not folder.described and folder.newest_step < self.accounts.first_step
        if new and not folder.journal.exists():
            self._open_journal(self.accounts).close()
        return journal_of(folder, before=self.accounts.before, plan=self.accounts.plan).steps

    def _open_journal(self, accounts: Accounts) -> Journal:
        return Journal.open(
            self.checkpoints.journal,
            fingerprint=self.fingerprint,
            key_id=accounts.key_id,
            first_step=accounts.first_step,
        )


def settle_run(
    job: StageJob,
    *,
    subject: dict[str, Any],
    environment: dict[str, Any],
    plan: PrivacyPlan | None,
    prior_events: tuple[GaussianEvent, ...],
    max_steps: int,
    begins: bool = True,
) -> Run:
    """Return the run of this job, and make what it starts with: folder, key, journal, the state that it goes on from.

    Args:
        max_steps: the steps that are asked for.
        begins: whether this process makes what is missing and says where the run goes on; others find it made.

    Raises:
        UserError: something that the run, or the one before it, has begun with is gone or damaged.
    """
    before = find_continuation(job.checkpoints, subject=subject, environment=environment, plan=plan)
    continues = before.to_json() if before else None
    name = fingerprint(subject=subject, environment=environment, continues=continues)
    folder = CheckpointFolder(job.checkpoints, fingerprint=name, keep=job.settings.keep_checkpoints)
    key = _key(job, folder, subject=subject, environment=environment, plan=plan)
    accounts = Accounts(plan=plan, key_id=key_id(key), prior=prior_events, before=before) if plan else None
    run = Run(fingerprint=name, checkpoints=folder, key=key, accounts=accounts, max_steps=max_steps)
    if begins:
        _begin(run, before, root=job.checkpoints, processes=environment["processes"])
        if folder.newest_step < 0:
            tell_of_others(folder.path / "run.json", subject=subject, environment=environment)
        # Last: a folder without it is nobody's, and is made anew.
        folder.describe(subject=subject, environment=environment, continues=continues)
    return run


def _begin(run: Run, before: Continuation | None, *, root: Path, processes: int) -> None:
    """Make the journal and take over the state of the run before; again where a run has lost its checkpoints.

    Nothing starts at its first step silently.
    """
    folder = run.checkpoints
    recorded_steps = run.begin_journal()
    if before is not None and (not folder.described or folder.newest_step < 0):
        take_over(before, root=root, folder=folder)
        print(before.announcement(processes=processes, key_id=key_id(run.key)), flush=True)
    elif folder.described and folder.newest_step < 0:
        text = f"this stage starts at its first step: {folder.path} is of this run, but holds no checkpoint"
        if recorded_steps:
            text += f"; the {recorded_steps} steps in its journal are repeated with the same noise, and count once"
        print(text, flush=True)


def _key(
    job: StageJob,
    folder: CheckpointFolder,
    *,
    subject: dict[str, Any],
    environment: dict[str, Any],
    plan: PrivacyPlan | None,
) -> bytes:
    """Return the key of draws and noise: secret in release mode, otherwise derived from the seed.

    The derived one depends on the fingerprint and the expert, so that no two runs share noise; but not on the number
    of processes, which draw the same batches however many they are.
    """
    if plan is not None and plan.mode == "release":
        return folder.secret_key()
    run = fingerprint(subject=subject, environment=without_processes(environment))
    return derive_key(job.seed.to_bytes(8, "big", signed=True), job.expert, job.stage, run)
