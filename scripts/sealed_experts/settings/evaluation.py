"""What the evaluation of an expert's stages gets of the configuration, as canonical JSON, and how it is read back."""

import dataclasses
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.settings.fields import plain
from sealed_experts.settings.parsing import parse_group, parse_object
from sealed_experts.settings.types import AdapterSettings, ExpertSettings, ReinforceSettings, Settings, StageSettings

REVISION = 2  # raised when the numbers of an evaluation come to mean something else
_KEYS = {
    *("expert", "dataset", "seed", "template", "adapter", "stages", "revision"),
    *("eval_examples", "eval_answers", "max_seq_len", "sampling"),
}
_OPERATION = ("token_budget", "threads")
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "reward", "reward_options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """What the evaluation of an expert needs of the configuration.

    `sampling` says how held-out prompts are answered and scored; None where no stage has a reward.
    """

    expert: str
    dataset: str
    seed: int
    template: str
    device: str
    adapter: AdapterSettings
    stages: tuple[str, ...]
    eval_examples: int
    eval_answers: int
    max_seq_len: int
    token_budget: int
    threads: int
    sampling: ReinforceSettings | None


def measured_stage(expert: ExpertSettings) -> StageSettings:
    """Return the stage whose held-out records, lengths and threads the evaluation takes: all models face the same.

    It is the stage with a reward where there is one, since answers are compared with its own; else the last.
    """
    return _rewarded(expert) or expert.stage(expert.stages[-1])


def evaluation_settings(settings: Settings, expert_name: str) -> str:
    """Return what decides the numbers of an expert's evaluation, as canonical JSON."""
    expert = settings.by_name[expert_name]
    stage, rewarded = measured_stage(expert), _rewarded(expert)
    return canonical_json(
        {
            "expert": expert.name,
            "dataset": expert.dataset,
            "seed": settings.seed,
            "template": expert.template,
            "adapter": plain(expert.adapter),
            "stages": list(expert.stages),
            "revision": REVISION,
            "eval_examples": stage.eval_examples,
            "eval_answers": expert.eval_answers,
            "max_seq_len": stage.max_seq_len,
            "sampling": {name: plain(getattr(rewarded, name)) for name in _SAMPLING} if rewarded else None,
        }
    )


def evaluation_operation(settings: Settings, expert_name: str) -> str:
    """Return how an expert's evaluation is run, as canonical JSON; none of it makes the evaluation stale."""
    stage = measured_stage(settings.by_name[expert_name])
    return canonical_json({"device": settings.device} | {name: getattr(stage, name) for name in _OPERATION})


def evaluation_from_json(settings: str, operation: str) -> EvaluationRun:
    """Read back the texts of `evaluation_settings` and `evaluation_operation`.

    Raises:
        UserError: a text is not what these functions write.
    """
    text, how = _object(settings, _KEYS), _object(operation, {"device", *_OPERATION})
    shared: dict[str, Any] = {name: how[name] for name in _OPERATION}
    shared |= {name: text[name] for name in ("eval_examples", "max_seq_len")}
    sampling = text["sampling"]
    return EvaluationRun(
        expert=text["expert"],
        dataset=text["dataset"],
        seed=text["seed"],
        template=text["template"],
        device=how["device"],
        adapter=parse_group(AdapterSettings, text["adapter"]),
        stages=tuple(text["stages"]),
        eval_answers=text["eval_answers"],
        sampling=None if sampling is None else parse_group(ReinforceSettings, sampling | shared),
        **shared,
    )


def _rewarded(expert: ExpertSettings) -> ReinforceSettings | None:
    stages = [expert.stage(name) for name in expert.stages]
    return next((stage for stage in reversed(stages) if isinstance(stage, ReinforceSettings)), None)


def _object(text: str, keys: set[str]) -> dict[str, Any]:
    data = parse_object(text)
    if data.keys() != keys:
        raise UserError(f"these settings should hold {', '.join(sorted(keys))}; they hold {', '.join(sorted(data))}")
    return data
