"""What REINFORCE gains in the demo, with privacy and without: rewards on held-out prompts, and what they cost."""

import json
import math
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

OVERLAYS = {"with": (), "without": ("without-privacy.yaml",)}


def reward_gain() -> list[dict[str, object]]:
    """Run the demo's two stages both ways, from one base and the same data; return a row for each expert and way."""
    from tests.workflow.conftest import new_project

    rows = []
    with tempfile.TemporaryDirectory() as name:
        for way, overlays in OVERLAYS.items():
            project = new_project(Path(name) / way, Path(name) / "home")
            experts = _experts(project.folder)
            targets = [f"results/experts/{expert}/{file}" for expert in experts for file in _TARGETS]
            project.snakemake(*targets, config="config.yaml", overlays=overlays, seconds=3600)
            rows += [{"expert": expert, "way": way, **_row(project.folder, expert)} for expert in experts]
    return rows


_TARGETS = ("evaluation.json", "rl/rl_metrics.json")


def _experts(folder: Path) -> list[str]:
    import yaml

    return list(yaml.safe_load((folder / "config" / "config.yaml").read_text())["experts"])


def _row(folder: Path, expert: str) -> dict[str, object]:
    place = folder / "results" / "experts" / expert
    evaluation = json.loads((place / "evaluation.json").read_text())
    privacy = json.loads((place / "rl" / "rl_metrics.json").read_text())["privacy"]
    (gain,) = (gain for gain in evaluation["gains"] if gain["to"] == "reinforce")
    before, after = (evaluation["models"][name]["metrics"] for name in ("sft", "reinforce"))
    return {
        "before": before["reward"]["mean"],
        "after": after["reward"]["mean"],
        "gain": gain["metrics"]["reward"],
        "kl": evaluation["models"]["reinforce"]["kl"],
        "perplexity": math.exp(after["loss"]["mean"] - before["loss"]["mean"]) - 1,
        "cut": [evaluation["models"][name]["truncated_share"] for name in ("sft", "reinforce")],
        "epsilon": privacy["epsilon"],
        "counts": all(evaluation["checks"].values()),
    }


if __name__ == "__main__":
    for row in reward_gain():
        print(json.dumps(row))
