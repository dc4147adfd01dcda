"""Which run a stage is: its fingerprint, its folder, its key, and what it counts."""

import contextlib
from dataclasses import dataclass
from typing import Any

from sealed_experts.privacy.ledger.accounting import BudgetCurve
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.journal import Journal
from sealed_experts.privacy.plan import PrivacyPlan
from sealed_experts.privacy.streams import derive_key
from sealed_experts.training.checkpoints import CheckpointFolder, key_id
from sealed_experts.training.continuation import Accounts, find_continuation, take_over
from sealed_experts.training.environment import fingerprint, without_processes
from sealed_experts.training.job import StageJob


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a stage. Without privacy it has no accounts."""

    fingerprint: str
    checkpoints: CheckpointFolder
    key: bytes
    accounts: Accounts | None
    max_steps: int

    @property
    def total_steps(self) -> int:
        """The last step."""
        return self.accounts.total_steps if self.accounts else self.max_steps

    @property
    def stopped_reason(self) -> str:
        """Why the stage ends where it does."""
        return self.accounts.stopped_reason if self.accounts else "max_steps"

    @property
    def curve(self) -> BudgetCurve | None:
        """The curve of claimed ε by step."""
        return self.accounts.curve() if self.accounts else None

    def journal(self, *, writes: bool) -> contextlib.AbstractContextManager[Journal | None]:
        """Return the journal, open; None in a process that does not write."""
        if self.accounts is None or not writes:
            return contextlib.nullcontext()
        return Journal.open(
            self.checkpoints.path / "journal",
            fingerprint=self.fingerprint,
            key_id=self.accounts.key_id,
            first_step=self.accounts.first_step,
        )


def settle_run(
    job: StageJob,
    *,
    subject: dict[str, Any],
    environment: dict[str, Any],
    plan: PrivacyPlan | None,
    prior_events: tuple[GaussianEvent, ...],
) -> Run:
    """Return the run of this job, and make what it starts with: folder, key, the state that it goes on from."""
    before = find_continuation(job.checkpoints, subject=subject, environment=environment, plan=plan)
    continues = before.to_json() if before else None
    name = fingerprint(subject=subject, environment=environment, continues=continues)
    folder = CheckpointFolder(job.checkpoints, fingerprint=name, keep=job.settings.keep_checkpoints)
    key = _key(job, folder, subject=subject, environment=environment, plan=plan)
    if before is not None and not folder.described:
        take_over(before, root=job.checkpoints, folder=folder)
        print(before.announcement(processes=environment["processes"], key_id=key_id(key)), flush=True)
    # Last: a folder without it is nobody's, and is made anew.
    folder.describe(subject=subject, environment=environment, continues=continues)
    accounts = Accounts(plan=plan, key_id=key_id(key), prior=prior_events, before=before) if plan else None
    return Run(fingerprint=name, checkpoints=folder, key=key, accounts=accounts, max_steps=job.settings.steps)


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
