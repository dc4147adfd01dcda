"""What the workflow costs when nothing is trained: a plan for a thousand experts, a run that is up to date."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def thousand_experts() -> dict:
    """Return the demo's configuration with a thousand experts in place of three."""
    configuration = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    first = next(iter(configuration["experts"].values()))
    configuration["experts"] = {f"expert_{number}": first for number in range(1000)}
    return configuration


def seconds(command: list[str], *, folder: Path, home: Path) -> float:
    """Return the wall time of a command that must succeed."""
    start = time.perf_counter()
    environment = {**os.environ, "SEALED_EXPERTS_HOME": str(home)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def workflow_overhead() -> dict[str, float]:
    """Return the median wall seconds of each measurement, by what it is."""
    from tests.workflow.conftest import TINY, new_project

    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        project = new_project(Path(name) / "tree", home)
        project.configure(TINY)
        project.snakemake()
        again = project.command()
        project.configure(thousand_experts(), "thousand.yaml")
        plan = [*project.command(config="thousand.yaml")[:-1], "-n", "--quiet", "all", "--"]
        return {
            "a run with nothing to do": statistics.median(
                seconds(again, folder=project.folder, home=home) for _ in range(5)
            ),
            "a dry-run with 1,000 experts": statistics.median(
                seconds(plan, folder=project.folder, home=home) for _ in range(3)
            ),
        }


if __name__ == "__main__":
    for title, value in workflow_overhead().items():
        print(f"{title}: {value:.1f} s")
