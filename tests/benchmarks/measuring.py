"""Run contenders side by side, each in a process of its own, and tell medians and ratios."""

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measure(script: str, contender: str, *, extra: tuple[str, ...] = ()) -> dict[str, float]:
    """Run one contender once and return the JSON it prints last."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--contender", contender, *extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rounds(script: str, contenders: list[str], *, count: int) -> dict[str, list[dict[str, float]]]:
    """Run all contenders in turn, `count` times over, so that a drifting machine hits them alike."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(count):
        for name in contenders:
            results[name].append(measure(script, name))
            print(f"round {number + 1}: {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def median(results: list[dict[str, float]], figure: str) -> float:
    """Return the median of one figure over the rounds."""
    return statistics.median(result[figure] for result in results)


def median_ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], figure: str) -> float:
    """Return the median over rounds of ours / theirs, round by round."""
    return statistics.median(one[figure] / two[figure] for one, two in zip(ours, theirs, strict=True))


def machine() -> str:
    """Describe the machine in a line, without naming it."""
    import os

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
