"""The time limit of the SLURM job that this process runs in. Outside SLURM there is no deadline."""

import os
import re
import subprocess
import time
from collections.abc import Callable

# Saving takes seconds, and a step is abandoned within one physical batch. SLURM checks the time every half minute.
MARGIN_SECONDS = 60.0
_LARGEST_SHARE = 0.25  # of the time left: a job of a few minutes still trains for three quarters of them
_QUERY_SECONDS = 5.0
_LEFT = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)")


class Deadline:
    """The moment at which a run has to save, so that nothing is lost when SLURM ends the job."""

    def __init__(self, seconds_left: float, *, ask: Callable[[], float | None]) -> None:
        self._ask = ask
        self._margin = min(MARGIN_SECONDS, _LARGEST_SHARE * seconds_left)
        self._moment = time.monotonic() + seconds_left - self._margin

    def passed(self) -> bool:
        """Return whether it is time to save. Asks SLURM once more first, because the job may have got more time."""
        if time.monotonic() < self._moment:
            return False
        left = self._ask()
        if left is not None and left > self._margin:
            self._moment = time.monotonic() + left - self._margin
            return False
        return True


def job_deadline() -> Deadline | None:
    """Return the deadline of the SLURM job that this process runs in; None outside SLURM, or without a limit."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    left = _ask_slurm(job)
    return None if left is None else Deadline(left, ask=lambda: _ask_slurm(job))


def parse_time_left(text: str) -> float | None:
    """Return the seconds in squeue's `%L` ([days-][hours:]minutes:seconds); None for UNLIMITED or other text.

    A job of several parts has one line for each part. The part that ends first counts.
    """
    found = [match for line in text.split() if (match := _LEFT.fullmatch(line))]
    units = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    left = [sum(int(match[unit] or 0) * seconds for unit, seconds in units.items()) for match in found]
    return float(min(left)) if left else None


def _ask_slurm(job: str) -> float | None:
    try:
        done = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        # No reason to stop: SLURM also sends a signal before it ends the job.
        print(f"warning: squeue does not say how long SLURM job {job} has left: {error}", flush=True)
        return None
    return parse_time_left(done.stdout)
