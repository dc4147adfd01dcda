"""The stages say which class of model is evaluated, and so what can be measured of it."""

from pathlib import Path

import pytest
import torch

from sealed_experts.configuration.jobs import evaluation_operation, evaluation_settings
from sealed_experts.configuration.resolution import load
from sealed_experts.errors import UserError
from sealed_experts.evaluation.evaluation_page import evaluation_page
from sealed_experts.evaluation.job import EvaluationJob, evaluation_from_json
from sealed_experts.models.attachment import adapter_state, attach_adapter
from sealed_experts.models.classes import CAUSAL, CLASSIFIER
from sealed_experts.models.loading import load_base
from sealed_experts.training.checkpoints import load_state, save_state
from sealed_experts.training.objectives.sft import Sft
from tests.unit.evaluation.test_evaluation import ADAPTER, Run

CONFIG = """
datasets: {{banking: {{source: demo, domain: banking}}}}
defaults: {{evaluation: {defaults}}}
experts:
  banker: {{dataset: banking, routing: {{always_active: true}}{own}}}
"""
TAKES_NO_TEXT = "is measured only for a causal language model, and `banker.sft` trains a sequence classifier"


@pytest.fixture
def classifies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `sft` train a classifier of three labels."""
    monkeypatch.setattr(Sft, "model_class", CLASSIFIER)
    monkeypatch.setattr(Sft, "model_options", lambda self: {"num_labels": 3})


def job(folder: Path, *, defaults: str = "{}", own: str = "") -> EvaluationJob:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(defaults=defaults, own=own))
    settings = load([path], root=folder)
    return evaluation_from_json(evaluation_settings(settings, "banker"), evaluation_operation(settings, "banker"))


def test_the_class_and_its_options_are_those_of_the_stages(tmp_path: Path, classifies: None) -> None:
    classified = job(tmp_path)
    assert (classified.model_class, classified.model_options) == (CLASSIFIER, {"num_labels": 3})


def test_without_a_word_about_it_a_language_model_is_evaluated(tmp_path: Path) -> None:
    assert (job(tmp_path).model_class, job(tmp_path).model_options) == (CAUSAL, {})


@pytest.mark.parametrize("defaults", ["{}", "{metrics: [loss, exact_match]}"])
def test_what_needs_tokens_is_left_out_for_a_classifier(tmp_path: Path, classifies: None, defaults: str) -> None:
    classified = job(tmp_path, defaults=defaults)
    assert (classified.metrics, classified.sampling, classified.rewarded) == ((), None, None)


@pytest.mark.parametrize("metric", ["loss", "perplexity", "exact_match", "reward"])
def test_what_the_expert_itself_names_is_refused(tmp_path: Path, classifies: None, metric: str) -> None:
    with pytest.raises(UserError) as error:
        job(tmp_path, own=f", evaluation: {{metrics: [{metric}]}}")
    told = f'experts.banker.evaluation.metrics: "{metric}" {TAKES_NO_TEXT}; remove evaluation.metrics'
    assert str(error.value).splitlines()[1:] == [f"  {told}"]


def test_no_stage_is_chosen_by_it(tmp_path: Path, classifies: None) -> None:
    with pytest.raises(UserError) as error:
        job(tmp_path, own=", select: best, select_metric: loss, privacy: {enabled: false}")
    told = f'experts.banker.select_metric: "loss" {TAKES_NO_TEXT}; write `select: last`'
    assert str(error.value).splitlines()[1:] == [f"  {told}"]


def test_the_base_is_loaded_as_what_the_adapter_was_made_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    options = {"num_labels": 3}
    base = load_base(run.base.parent, device=torch.device("cpu"), model_class=CLASSIFIER, options=options)
    model = attach_adapter(base.model, ADAPTER, seed=3, model_class=CLASSIFIER)
    adapter = tmp_path / "classifier.pt"
    save_state({**load_state(run.sft), "model_state_dict": adapter_state(model)}, adapter)

    changes = {"metrics": (), "sampling": None, "rewarded": None, "stages": ("sft",)}
    content, predictions = run.evaluated(adapters=[adapter], model_class=CLASSIFIER, model_options=options, **changes)
    assert content["metrics"] == content["samples"] == []
    assert {name: model["metrics"] for name, model in content["models"].items()} == {"base": {}, "sft": {}}
    assert content["gains"] == [{"from": "base", "to": "sft", "metrics": {}}]
    assert {line["prediction"] for line in predictions["sft"]} == {None}
    assert "tiny_expert" in evaluation_page([content])
    with pytest.raises(UserError, match="do not fit this model"):
        run.evaluated(adapters=[adapter], **changes)
