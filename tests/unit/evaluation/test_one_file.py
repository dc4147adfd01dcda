"""A metric is one file: a toy one, put into a copy of the tree, is set, checked, measured, chosen by and shown."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.files.canonical import write_json
from tests.conftest import ROOT
from tests.unit.evaluation.test_evaluation import Run

TOY = '''
"""`vowels`: how many letters of an answer are vowels."""

from typing import ClassVar

from sealed_experts.metrics import Case, Metric
from sealed_experts.settings.fields import setting


class Vowels(Metric):
    """Share of an answer's characters that are vowels, times a factor."""

    factor: float = setting("Multiplies the share.", default=1.0, gt=0)

    title: ClassVar[str] = "Vowels"
    unit: ClassVar[str] = "share of characters"
    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float | None] = 9.0

    def measure(self, case: Case) -> float:
        return self.factor * sum(letter in "aeiou" for letter in case.answer) / len(case.answer)
'''
CONFIG = """
seed: 3
device: cpu
datasets: {{tiny: {{source: demo, domain: banking}}}}
defaults: {{evaluation: {{metrics: [loss, vowels], max_new_tokens: 8{factor}}}}}
experts:
  tiny_expert:
    dataset: tiny
    stages: [sft, reinforce]
    adapter: {{rank: 2, alpha: 4}}
    sft: {{max_seq_len: 110, token_budget: 300, threads: 1}}
    reinforce: {{max_seq_len: 110, max_new_tokens: 8, token_budget: 300, threads: 1, temperature: 0.9}}
    select: best
    select_metric: vowels
    routing: {{always_active: true}}
"""
TEXTS = """
import json, sys
from pathlib import Path
from sealed_experts.configuration import jobs
from sealed_experts.configuration.reference import settings_tables
from sealed_experts.configuration.resolution import load
from sealed_experts.configuration.schema import document_schema

settings = load([sys.argv[1]], root=Path.cwd())
print(json.dumps({
    "settings": jobs.evaluation_settings(settings, "tiny_expert"),
    "operation": jobs.evaluation_operation(settings, "tiny_expert"),
    "selection": jobs.selection_settings(settings, "tiny_expert"),
    "schema": document_schema()["$defs"]["EvaluationSettings"]["properties"],
    "tables": settings_tables(),
}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with_a_toy")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "scripts" / "sealed_experts" / "metrics" / "vowels.py").write_text(TOY)
    return folder


def python(tree: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )


def texts(tree: Path, factor: str) -> "subprocess.CompletedProcess[str]":
    (tree / "config.yaml").write_text(CONFIG.format(factor=factor))
    return python(tree, "-c", TEXTS, "config.yaml")


def test_its_settings_are_checked_and_stand_in_schema_and_tables(tree: Path) -> None:
    wrong = texts(tree, ", vowels: {factor: -1, power: 2}")
    assert "defaults.evaluation.vowels.factor: -1 is not a number above 0" in wrong.stderr
    assert "defaults.evaluation.vowels.power: no such setting" in wrong.stderr
    told = json.loads(texts(tree, "").stdout)
    assert "vowels" in told["schema"]["metrics"]["items"]["enum"]
    assert "| `evaluation.vowels.factor` | `1.0` | a number above 0 | Multiplies the share. |" in told["tables"]
    assert "| `vowels` | Share of an answer's characters that are vowels, times a factor. |" in told["tables"]


def test_a_package_that_it_needs_is_asked_for(tree: Path) -> None:
    needy = TOY.replace("Vowels(", "Needy(").replace(
        "    title:", '    extra: ClassVar = {"no_such_module": "text"}\n    title:'
    )
    path = tree / "scripts" / "sealed_experts" / "metrics" / "needy.py"
    path.write_text(needy)
    (tree / "needy.yaml").write_text(CONFIG.format(factor="").replace("[loss, vowels]", "[vowels, needy]"))
    code = (
        "import sys; from pathlib import Path; from sealed_experts.features import check_extras;"
        "from sealed_experts.configuration.named_features import named_features;"
        "from sealed_experts.configuration.resolution import load;"
        "check_extras(named_features(load([sys.argv[1]], root=Path.cwd())))"
    )
    try:
        done = python(tree, "-c", code, "needy.yaml")
    finally:
        path.unlink()
    assert "needy needs the extra `text`, which is not installed: run pip install" in done.stderr


def test_it_is_measured_chosen_by_and_shown(tree: Path, tmp_path: Path) -> None:
    run, told = Run(tmp_path), json.loads(texts(tree, ", vowels: {factor: 0.5}").stdout)
    place = tree / "results" / "experts" / "tiny_expert"
    predictions = {name: place / "predictions" / f"{name}.jsonl" for name in ("base", "sft", "reinforce")}
    (place / "predictions").mkdir(parents=True)
    done = python(
        tree,
        *("scripts/evaluate_expert.py", "--base", run.base, "--val", run.data / "val.jsonl"),
        *("--train", run.data / "train.jsonl"),
        *("--adapters", run.sft, run.reinforce, "--settings", told["settings"], "--operation", told["operation"]),
        *("--output", place / "evaluation.json", "--predictions", *predictions.values()),
    )
    assert done.returncode == 0, done.stderr
    models = json.loads((place / "evaluation.json").read_text())["models"]
    for name, path in predictions.items():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            said = line["prediction"]
            expected = 0.5 * sum(map(said.count, "aeiou")) / len(said) if said else 9.0
            assert line["scores"]["vowels"] == pytest.approx(expected)
        mean = sum(line["scores"]["vowels"] for line in lines) / len(lines)
        assert models[name]["metrics"]["vowels"]["mean"] == pytest.approx(mean)

    metrics = [tmp_path / "sft.json", tmp_path / "rl.json"]
    for path in metrics:
        write_json(path, {"adapter_file": "adapter.pt"})
    done = python(
        tree,
        *("scripts/select_stage.py", "--settings", told["selection"], "--metrics", *metrics),
        *("--evaluation", place / "evaluation.json", "--output", tmp_path / "selection.json"),
    )
    assert done.returncode == 0, done.stderr
    lower = min(("reinforce", "sft"), key=lambda stage: models[stage]["metrics"]["vowels"]["mean"])
    assert json.loads((tmp_path / "selection.json").read_text())["stage"] == lower

    done = python(
        tree,
        *("scripts/tabulate_evaluations.py", "--evaluations", place / "evaluation.json"),
        *("--page", tmp_path / "page.html"),
    )
    assert done.returncode == 0, done.stderr
    assert "Vowels (share of characters)" in (tmp_path / "page.html").read_text()
    done = python(tree, "-m", "sealed_experts.cli.main", "compare", "--samples")
    assert done.returncode == 0, done.stderr
    assert "Vowels" in done.stdout
    assert "vowels 0." in done.stdout
