"""Files that report the progress of a running stage: metrics.jsonl, one line per logged step, and state.json."""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import append_text, write_bytes
from sealed_experts.files.canonical import write_json


def without_nan(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line with None for each figure that is NaN or infinite: JSON has neither."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


class ProgressFiles:
    """Writes a stage's metrics.jsonl and state.json, for people and for `sealed-experts watch`."""

    def __init__(self, folder: Path, *, target_epsilon: float | None) -> None:
        self._metrics = folder / "metrics.jsonl"
        self._path = folder / "state.json"
        self._state: dict[str, Any] = {
            "state": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
            "max_steps": None,
            "target_epsilon": target_epsilon,
            "step": 0,
            "resumed_from": None,
            "epsilon": None,
            "error": None,
        }

    def begin(self, history: Sequence[dict[str, Any]], *, step: int, max_steps: int) -> None:
        """Rewrite metrics.jsonl from a checkpoint's history: the run repeats the steps after it, and their lines."""
        lines = "".join(json.dumps(line) + "\n" for line in history)
        write_bytes(self._metrics, lines.encode())
        self.update("running", step=step, max_steps=max_steps, resumed_from=step or None)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl and update state.json."""
        append_text(self._metrics, json.dumps(line) + "\n")
        self.update("running", step=line["step"], epsilon=line.get("epsilon", self._state["epsilon"]))

    def end(self, state: str, error: Exception) -> None:
        """Record how the run ended. A failed write is ignored, so that the log shows the error itself."""
        with contextlib.suppress(UserError, OSError):
            self.update(state, error=(str(error) or type(error).__name__).splitlines()[0])

    def update(self, state: str, **values: Any) -> None:
        """Write state.json with `state` and the given values."""
        self._state.update(values, state=state, updated=time.time())
        write_json(self._path, self._state)


class NoProgressFiles(ProgressFiles):
    """For all processes but the first, which alone writes the files."""

    def begin(self, history: Sequence[dict[str, Any]], *, step: int, max_steps: int) -> None:
        """Write nothing."""

    def log(self, line: dict[str, Any]) -> None:
        """Write nothing."""

    def update(self, state: str, **values: Any) -> None:
        """Write nothing."""
