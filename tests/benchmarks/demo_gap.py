"""What privacy costs the demo: held-out loss of every expert with and without it, on the same base and data."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def demo_gap() -> dict[str, dict[str, float]]:
    """Run the demo's supervised fine-tuning both ways; return, by expert, its losses in nats per token and its ε.

    `closed` is the share of the gap, that the run without privacy closes, which the private one closes too.
    """
    from tests.workflow.conftest import new_project

    configuration = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    with tempfile.TemporaryDirectory() as name:
        project = new_project(Path(name) / "tree", Path(name) / "home")
        project.configure(configuration)
        project.snakemake("sft", seconds=3600)
        private = _metrics(project.folder, configuration["experts"])
        shutil.rmtree(project.folder / "results" / "experts")
        configuration["defaults"]["privacy"]["enabled"] = False
        project.configure(configuration)
        project.snakemake("sft", seconds=3600)
        plain = _metrics(project.folder, configuration["experts"])
    return {expert: _compared(private[expert], plain[expert]) for expert in configuration["experts"]}


def _metrics(folder: Path, experts: list[str]) -> dict[str, dict]:
    path = "results/experts/{}/sft/training_metrics.json"
    return {expert: json.loads((folder / path.format(expert)).read_text()) for expert in experts}


def _compared(private: dict, plain: dict) -> dict[str, float]:
    before = plain["first_val_loss"]
    gap = before - plain["final_val_loss"]
    return {
        "before": before,
        "without privacy": plain["final_val_loss"],
        "with privacy": private["final_val_loss"],
        "ε": private["privacy"]["epsilon"],
        "closed": (before - private["final_val_loss"]) / gap,
    }


if __name__ == "__main__":
    for expert, figures in demo_gap().items():
        print(expert, {name: round(value, 3) for name, value in figures.items()})
