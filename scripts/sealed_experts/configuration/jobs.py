"""The part of the configuration that each rule gets, as canonical JSON. Its script reads it with its room's `job`.

One text holds everything that decides a result, and nothing else: only a change of this text makes the result stale.
Two spellings of the same settings give the same text. A second text holds settings that only say how a stage is run.
Each text contains a small number (`recipe`, `revision`), which is raised when the same settings get another meaning.
"""

from typing import Any

from sealed_experts.configuration.document import ExpertSettings, Settings
from sealed_experts.configuration.held_out import publishes_evaluation
from sealed_experts.errors import UserError
from sealed_experts.evaluation import job as evaluation_job
from sealed_experts.evaluation.settings import SAMPLING
from sealed_experts.files.canonical import canonical_json
from sealed_experts.models.bases import DEMO, base_key
from sealed_experts.moe.settings import MoeSettings
from sealed_experts.packages.job import PACKAGED, PUBLISHING
from sealed_experts.packages.settings import PackageSettings
from sealed_experts.settings.fields import plain
from sealed_experts.training.objectives import Stage


def stage_settings(settings: Settings, expert_name: str, stage: str) -> str:
    """Return what decides the numbers of one stage of one expert."""
    expert = _expert(settings, expert_name)
    training = _stage(expert, stage)
    return canonical_json(
        {
            "expert": expert.name,  # so that two experts never share noise
            "stage": stage,
            "revision": training.revision,
            "seed": settings.seed,
            "template": expert.template,
            "adapter": plain(expert.adapter),
            "training": training.numbers(),
        }
    )


def stage_operation(settings: Settings, expert_name: str, stage: str) -> str:
    """Return how one stage of one expert is run. No change of it makes the stage stale."""
    training = _stage(_expert(settings, expert_name), stage)
    return canonical_json({"device": settings.device, "training": training.part(operation=True)})


def dataset_settings(settings: Settings, name: str) -> str:
    """Return what decides a dataset's records."""
    dataset = settings.datasets[name]
    # Whether figures can be published does not change the records. It is a fact for the package.
    own = {key: value for key, value in dataset.part(operation=False).items() if key != PUBLISHING}
    return canonical_json({"name": name, "recipe": dataset.recipe, "seed": settings.seed, "dataset": own})


def base_settings(settings: Settings) -> str:
    """Return what decides the base's files."""
    base = settings.base
    own = {key: value for key, value in base.part(operation=False).items() if key not in ("demo", "key")}
    text: dict[str, Any] = {"key": base_key(base), "base": own}
    if base.name == DEMO:
        own["demo"] = base.demo.part(operation=False)
        text |= {"recipe": base.recipe, "seed": settings.seed}
    return canonical_json(text)


def base_operation(settings: Settings) -> str:
    """Return how the demo base is pretrained."""
    return canonical_json({"device": settings.device, "demo": settings.base.demo.part(operation=True)})


def package_settings(settings: Settings, expert_name: str) -> str:
    """Return what decides an expert's package besides its weights and receipt."""
    expert = _expert(settings, expert_name)
    own = {key: plain(getattr(expert, key)) for key in PACKAGED} | {"package": expert.package.part(operation=False)}
    public = settings.datasets[expert.dataset].public_evaluation
    data = {
        PUBLISHING: publishes_evaluation(expert, settings.datasets),
        "dataset": expert.dataset if public else None,
    }
    return canonical_json(own | data | {"recipe": PackageSettings.revision})


def moe_settings(settings: Settings) -> str:
    """Return what decides the assembled mixture besides its packages; experts in routing order."""
    experts = [
        {"name": expert.name, "dataset": expert.dataset, "routing": plain(expert.routing)}
        for expert in settings.experts
    ]
    base = {"base": settings.base.name, "revision": settings.base.revision}
    return canonical_json(base | {"recipe": MoeSettings.revision, "experts": experts} | plain(settings.moe))


def evaluation_settings(settings: Settings, expert_name: str) -> str:
    """Return what decides the numbers of an expert's evaluation."""
    expert = settings.by_name[expert_name]
    metrics = [expert.evaluation.metric(name) for name in expert.evaluation.metrics]
    return canonical_json(
        {
            "expert": expert.name,
            "dataset": expert.validation_of(),
            "seed": settings.seed,
            "template": expert.template,
            "adapter": plain(expert.adapter),
            "stages": list(expert.stages),
            "task": expert.measured.model_class.task_type,
            "model_options": expert.measured.model_options(),
            "revision": evaluation_job.REVISION,
            "eval_examples": expert.measured.eval_examples,
            "max_seq_len": expert.measured.max_seq_len,
            "metrics": [
                {"metric": metric.feature, "revision": metric.revision, "settings": plain(metric)} for metric in metrics
            ],
            "sampling": _sampling(expert),
            "rewarded": _rewarded(expert) if any(metric.needs == "reward" for metric in metrics) else None,
        }
    )


def evaluation_operation(settings: Settings, expert_name: str) -> str:
    """Return how an expert's evaluation is run. No change of it makes the evaluation stale."""
    stage = settings.by_name[expert_name].measured
    how = {name: getattr(stage, name) for name in evaluation_job.OPERATION}
    return canonical_json({"device": settings.device} | how)


def selection_settings(settings: Settings, expert_name: str) -> str:
    """Return what decides which stage of an expert is shipped."""
    expert = settings.by_name[expert_name]
    return canonical_json(
        {
            "expert": expert.name,
            "stages": list(expert.stages),
            "select": expert.select,
            "metric": expert.select_metric if expert.select == "best" else None,
        }
    )


def _sampling(expert: ExpertSettings) -> dict[str, Any] | None:
    """Return how held-out prompts are answered; None if no metric needs answers."""
    evaluation = expert.evaluation
    # The likeliest tokens are the same each time.
    answers = expert.eval_answers if evaluation.temperature else 1
    sampling = {name: getattr(evaluation, name) for name in SAMPLING} | {"answers": answers}
    return sampling if evaluation.asks() else None


def _rewarded(expert: ExpertSettings) -> dict[str, Any] | None:
    """Return the stage with a reward, and the settings that make it."""
    stage = expert.rewarded
    own = {name: plain(getattr(stage, name)) for name in stage.reward_settings} if stage else {}
    return {"stage": stage.feature, "settings": own} if stage else None


def _expert(settings: Settings, name: str) -> ExpertSettings:
    if name not in settings.by_name:
        raise UserError(f"no expert is called {name!r}; the configuration has {', '.join(settings.by_name)}")
    return settings.by_name[name]


def _stage(expert: ExpertSettings, stage: str) -> Stage:
    if stage not in expert.stages:
        raise UserError(f"expert {expert.name} has no stage {stage!r}; its stages are {', '.join(expert.stages)}")
    return expert.stage(stage)
