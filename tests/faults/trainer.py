"""One training stage of the tiny project, run again and again in forks, and what must be the same afterwards."""

import importlib.util
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sealed_experts.training.objectives import STAGES
from tests.measured import without_times
from tests.workflow.conftest import Project

SCRIPT = "scripts/train_stage.py"


class Stage:
    """A stage of an expert of a project whose inputs are there."""

    def __init__(self, project: Project, *, expert: str, stage: str) -> None:
        """Ask Snakemake for the job's command line, and load the script."""
        self.project, self.stage = project, stage
        self.name = f"{expert} {stage}"
        self.folder = project.folder / "results" / "experts" / expert / STAGES[stage].folder()
        self.adapter = self.folder / STAGES[stage].adapter_file
        self.log = project.folder / "faults.log"
        done = project.snakemake(
            str(self.adapter.relative_to(project.folder)),
            flags=("--dry-run", "--printshellcmds", "--forcerun", f"train_{stage}"),
        )
        line = next(line for line in done.stdout.splitlines() if f"python {SCRIPT}" in line)
        words = shlex.split(line.partition(">")[0] if "> results" not in line else line[: line.index(" > results")])
        self._arguments = words[words.index(SCRIPT) :]
        self._main = main_of(project.folder / SCRIPT)

    def work(self) -> int:
        """Do what the job does; to be called in a fork."""
        sys.argv = self._arguments
        return self._main()

    def clear(self, *, key: bytes | None) -> None:
        """Remove what the stage has made; in release mode, put back the key that it shall draw."""
        folders = self._runs()
        name = folders[0].name if folders else None
        shutil.rmtree(self.folder, ignore_errors=True)
        if key is not None and name is not None:
            own = self.folder / "checkpoints" / name
            own.mkdir(parents=True)
            (own / "key").write_bytes(key)
            (own / "key").chmod(0o600)

    def key(self) -> bytes | None:
        """Return the key that the stage has drawn."""
        paths = [folder / "key" for folder in self._runs() if (folder / "key").exists()]
        return paths[0].read_bytes() if paths else None

    def result(self) -> tuple[Any, str]:
        """Return everything in the final adapter but measured times, and the digest of its tensors."""
        from sealed_experts.training.checkpoints import load_state, tensors_digest

        state = load_state(self.adapter)
        weights = tensors_digest(state["model_state_dict"])
        plain = {key: value for key, value in state.items() if key not in ("model_state_dict", "optimizer")}
        return json.loads(json.dumps(without_times(plain), default=str)), weights

    def visible_steps(self) -> int:
        """Return the last step whose result somebody could have seen: in a metric, a checkpoint or the adapter."""
        seen = [0]
        lines = self.folder / "metrics.jsonl"
        for line in lines.read_text().splitlines() if lines.exists() else []:
            try:
                seen.append(int(json.loads(line)["step"]))
            except (ValueError, KeyError):
                continue  # the torn last line of a killed run
        for folder in self._runs():
            seen += [int(path.stem.rpartition("_")[2]) for path in folder.glob("checkpoint_step_*.pt")]
        if self.adapter.exists():
            from sealed_experts.training.checkpoints import load_state

            seen.append(load_state(self.adapter)["step"])
        return max(seen)

    def recorded_steps(self) -> int:
        """Return how many steps the journals hold; a torn last line is one."""
        journals = [folder / "journal" for folder in self._runs()]
        return sum(max(0, len(path.read_bytes().splitlines()) - 1) for path in journals if path.exists())

    def _runs(self) -> list[Path]:
        checkpoints = self.folder / "checkpoints"
        return [path for path in checkpoints.iterdir() if path.is_dir()] if checkpoints.is_dir() else []


def main_of(path: Path) -> Callable[[], int]:
    """Load a script and return its main function."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main  # type: ignore[no-any-return]
