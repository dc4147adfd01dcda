"""The run of a stage: its fingerprint, its folder, its key, and its privacy accounts.

A run is one training of a stage with fixed data, settings and numeric environment. run.json in its folder describes it.
"""

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
from sealed_experts.training.other_runs import report_other_runs


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a stage. Without privacy, `accounts` is None. `max_steps` is what the settings ask for."""

    fingerprint: str
    checkpoints: CheckpointFolder
    key: bytes
    accounts: Accounts | None
    max_steps: int

    @functools.cached_property
    def stream(self) -> Stream:
        """The random stream for draws and noise."""
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
        """Open the journal and return it; None in a process that does not write.

        Raises:
            UserError: the journal is gone or damaged, or belongs to another run.
        """
        if self.accounts is None or not writes:
            return contextlib.nullcontext()
        journal_of(self.checkpoints, before=self.accounts.before, plan=self.accounts.plan)  # raises if it is gone
        return self._open_journal(self.accounts)

    def begin_journal(self) -> int:
        """Start the journal if this run is new; return how many steps the journal holds.

        Raises:
            UserError: the journal is gone or damaged, or belongs to another run.
        """
        if self.accounts is None:
            return 0
        folder = self.checkpoints
        # A run that has its own checkpoint had a journal. If it is missing now, it was lost: do not start a new one.
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
    """Return the run of this job, and create what it needs to start: folder, key, journal, the state to continue from.

    Args:
        max_steps: the number of steps that the settings ask for.
        begins: whether this process creates what is missing, and reports from where the run continues.

    Raises:
        UserError: a file that this run, or the previous run, has begun with is gone or damaged.
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
            report_other_runs(folder.path / "run.json", subject=subject, environment=environment)
        # Write run.json last: a folder without it belongs to no run yet, and is set up again.
        folder.describe(subject=subject, environment=environment, continues=continues)
    return run


def _begin(run: Run, before: Continuation | None, *, root: Path, processes: int) -> None:
    """Start the journal and take over the state of the previous run, also if this run has lost its checkpoints.

    A run that starts at its first step reports it.
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
    """Return the key for draws and noise: secret in release mode, otherwise derived from the seed.

    The derived key depends on the subject and the environment, so that no two runs share noise. It does not depend on
    the number of processes, so that any number of processes draws the same batches.
    """
    if plan is not None and plan.mode == "release":
        return folder.secret_key()
    run = fingerprint(subject=subject, environment=without_processes(environment))
    return derive_key(job.seed.to_bytes(8, "big", signed=True), job.expert, job.stage, run)
