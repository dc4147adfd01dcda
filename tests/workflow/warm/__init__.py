"""Runs of the workflow whose programs start in forks of one process."""

import os
import subprocess
import sys
from pathlib import Path

from tests.workflow.warm.handover import hand_over

FOLDER = Path(__file__).parent


class WarmStarts:
    """The server of warm starts. `environment` makes the programs of a run use it."""

    def __init__(self, folder: Path) -> None:
        self._socket = str(folder / "socket")
        self.environment = {"TESTS_WARM_SERVER": self._socket, "PYTHONPATH": str(FOLDER)}
        self._server = subprocess.Popen(
            [sys.executable, FOLDER / "server.py", self._socket],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._server.kill()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def run(self, *arguments: str, folder: Path, environment: dict[str, str], printed: Path) -> int:
        """Run a program as `python <arguments>` would, and return its exit code; what it prints goes into a file."""
        with open(printed, "wb") as output, open(os.devnull, "rb") as nothing:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            return hand_over(
                self._socket, arguments=arguments, folder=str(folder), environment=environment, streams=streams
            )
