"""What the evaluation of an expert's stages gets of the configuration."""

import dataclasses
from typing import Any

from sealed_experts.models.adapters import ADAPTER, AdapterKind
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.job_text import read_text
from sealed_experts.training.objectives.reinforce import Reinforce

REVISION = 2  # raised when the numbers of an evaluation come to mean something else
_KEYS = {
    *("expert", "dataset", "seed", "template", "adapter", "stages", "revision"),
    *("eval_examples", "eval_answers", "max_seq_len", "sampling"),
}
OPERATION = ("token_budget", "threads")
SAMPLING = ("max_new_tokens", "temperature", "top_p", "reward", "reward_options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What the evaluation of an expert needs of the configuration.

    `sampling` says how held-out prompts are answered and scored; None where no stage has a reward.
    """

    expert: str
    dataset: str
    seed: int
    template: str
    device: str
    adapter: AdapterKind
    stages: tuple[str, ...]
    eval_examples: int
    eval_answers: int
    max_seq_len: int
    token_budget: int
    threads: int
    sampling: Reinforce | None


def evaluation_from_json(settings: str, operation: str) -> EvaluationJob:
    """Read back the texts of `configuration.jobs`: `evaluation_settings` and `evaluation_operation`.

    Raises:
        UserError: a text is not what these functions write.
    """
    text, how = read_text(settings, _KEYS), read_text(operation, {"device", *OPERATION})
    shared: dict[str, Any] = {name: how[name] for name in OPERATION}
    shared |= {name: text[name] for name in ("eval_examples", "max_seq_len")}
    sampling = text["sampling"]
    return EvaluationJob(
        expert=text["expert"],
        dataset=text["dataset"],
        seed=text["seed"],
        template=text["template"],
        device=how["device"],
        adapter=ADAPTER.parse(text["adapter"]),
        stages=tuple(text["stages"]),
        eval_answers=text["eval_answers"],
        sampling=None if sampling is None else parse_group(Reinforce, sampling | shared),
        **shared,
    )
