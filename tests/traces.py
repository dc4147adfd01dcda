"""Invented files of a trainer, for `sealed-experts watch`."""

import json
from pathlib import Path
from typing import Any

NOW = 1_000_000.0
STATE = {
    "state": "running",
    "pid": 4711,
    "host": "here",
    "started": NOW - 100,
    "updated": NOW,
    "step": 20,
    "max_steps": 60,
    "resumed_from": None,
    "epsilon": 2.5,
    "target_epsilon": 8.0,
    "error": None,
}


def step_line(step: int, **values: object) -> dict[str, Any]:
    """Return one training line of metrics.jsonl: 2 seconds and 1,000 tokens per step."""
    line = {"step": step, "max_steps": 60, "loss": 3.0 - step / 60, "epsilon": 2.5, "tokens_per_second": 1234.5}
    return {**line, "seconds": 2.0 * step, "tokens_seen": 1000 * step, **values}


def leave(
    results: Path,
    *,
    state: dict[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    expert: str = "banking_expert",
) -> Path:
    """Write the files of an sft stage, as a trainer does, and return the stage's folder."""
    folder = results / "experts" / expert / "sft"
    folder.mkdir(parents=True, exist_ok=True)
    if state is not None:
        (folder / "state.json").write_text(json.dumps({**STATE, **state}))
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder
