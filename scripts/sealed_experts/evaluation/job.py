"""The part of the configuration that the evaluation of an expert gets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from sealed_experts.metrics import METRICS, Metric
from sealed_experts.models.adapters import ADAPTER, AdapterKind
from sealed_experts.models.classes import BY_TASK, ModelClass
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.job_text import read_text
from sealed_experts.training.objectives import STAGES, Stage

REVISION = 3  # raised when the numbers of an evaluation get another meaning
_KEYS = {
    *("expert", "dataset", "seed", "template", "adapter", "stages", "task", "model_options", "revision"),
    *("eval_examples", "max_seq_len", "metrics", "sampling", "rewarded"),
}
OPERATION = ("token_budget", "threads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSampling:
    """How held-out prompts are answered, and how many times each."""

    max_new_tokens: int
    temperature: float
    top_p: float
    answers: int
    max_seq_len: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """The part of the configuration that the evaluation of an expert needs.

    `model_class` and `model_options` are those of the stages. `sampling` is None if no metric needs answers.
    `rewarded`, the stage with the reward, is None if no metric needs a reward.
    """

    expert: str
    dataset: str
    seed: int
    template: str
    device: str
    adapter: AdapterKind
    model_class: ModelClass
    model_options: Mapping[str, Any]
    stages: tuple[str, ...]
    eval_examples: int
    max_seq_len: int
    token_budget: int | Literal["auto"]
    threads: int
    metrics: tuple[Metric, ...]
    sampling: AnswerSampling | None
    rewarded: Stage | None


def evaluation_from_json(settings: str, operation: str) -> EvaluationJob:
    """Read the texts that `evaluation_settings` and `evaluation_operation` of `configuration.jobs` wrote.

    Raises:
        UserError: a text is not from these functions.
    """
    text, how = read_text(settings, _KEYS), read_text(operation, {"device", *OPERATION})
    sampling, rewarded = text["sampling"], text["rewarded"]
    return EvaluationJob(
        **{name: text[name] for name in ("expert", "dataset", "seed", "template", "model_options", "eval_examples")},
        max_seq_len=text["max_seq_len"],
        device=how["device"],
        **{name: how[name] for name in OPERATION},
        adapter=ADAPTER.parse(text["adapter"]),
        model_class=BY_TASK[text["task"]],
        stages=tuple(text["stages"]),
        metrics=tuple(parse_group(METRICS[one["metric"]], one["settings"]) for one in text["metrics"]),
        sampling=AnswerSampling(**sampling, max_seq_len=text["max_seq_len"]) if sampling else None,
        rewarded=parse_group(STAGES[rewarded["stage"]], rewarded["settings"]) if rewarded else None,
    )
