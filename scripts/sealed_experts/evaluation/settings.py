"""Settings of an expert's evaluation: the metrics, and how held-out prompts are answered. Must not import torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import create_model

from sealed_experts.metrics import METRICS, Metric, metric_of
from sealed_experts.models.classes import CAUSAL
from sealed_experts.settings.fields import Distinct, Group, setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake, listed, shown
from sealed_experts.training.objectives import STAGES, Stage

# How answers are sampled if neither the settings nor a stage with a reward say it: always the likeliest token.
SAMPLING = {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0}
_COOLEST = 1e-3  # above 0: logits divided by less overflow
_REWARDED = [name for name, stage in STAGES.items() if stage.scores_answers]
_MetricName: Any = Literal[tuple(METRICS)]


class Evaluation(Group):
    """How an expert's stages, and the base, are compared on held-out records."""

    max_new_tokens: int | None = setting(
        "Longest sampled answer in tokens. Default: that of the stage with a reward, else 64.", default=None, ge=1
    )
    temperature: float | None = setting(
        "Divides the logits that answers are sampled from; 0 takes the likeliest token each time. Default: that of the"
        " stage with a reward, else 0.",
        default=None,
        ge=0,
        le=1e3,
    )
    top_p: float | None = setting(
        "Sample from the smallest set of likeliest tokens that holds this probability; 1 takes all. Default: that of"
        " the stage with a reward, else 1.",
        default=None,
        ge=1e-3,
        le=1,
    )
    metrics: Distinct[_MetricName] = setting(
        "What is measured. What an expert cannot have (a `reward` without a stage that has one) is left out, unless the"
        " expert's own settings name it.",
        default=tuple(name for name, metric in METRICS.items() if metric.usual),
        min_length=1,
    )

    def settled(self, *, measured: Stage, rewarded: Stage | None) -> "Evaluation":
        """Return these settings with all values filled in, and only metrics that can be measured.

        Two spellings of the same settings give equal results.

        Args:
            measured: the stage whose records and lengths the evaluation uses.
            rewarded: the expert's last stage with a reward, if there is one.
        """
        able = {name for name in self.metrics if measurable(name, measured=measured, rewarded=rewarded)}
        given = {name: getattr(self, name) for name in SAMPLING}
        sampling = {
            name: getattr(rewarded, name, other) if given[name] is None else given[name]
            for name, other in SAMPLING.items()
        }
        return self.model_copy(update={"metrics": tuple(name for name in METRICS if name in able), **sampling})

    def metric(self, name: str) -> Metric:
        """Return a metric with its settings."""
        group: Metric | None = getattr(self, name, None)
        return METRICS[name]() if group is None else group

    def asks(self) -> bool:
        """Tell whether answers are sampled. Call it on settled settings."""
        return any(METRICS[name].needs != "losses" for name in self.metrics)

    def mistakes(self, layers: Layers, *, measured: Stage, rewarded: Stage | None) -> Iterator[Mistake]:
        """Yield settings that do not fit the expert's stages; for the arguments see `settled`."""
        settled = self.settled(measured=measured, rewarded=rewarded)
        if settled.temperature and settled.temperature < _COOLEST:
            yield Mistake(
                layers.locate("evaluation", "temperature"),
                f"{settled.temperature} is too low to divide by; write 0 for the likeliest token each time, or at least"
                f" {_COOLEST}",
            )
        yield from self._metric_mistakes(layers, measured=measured, rewarded=rewarded)
        own = rewarded is None or self.max_new_tokens is not None  # otherwise the stage's check reports it
        if own and settled.asks() and (settled.max_new_tokens or 0) >= measured.max_seq_len:
            yield Mistake(
                layers.locate("evaluation", "max_new_tokens"),
                f"{settled.max_new_tokens} leaves no room for a prompt in the {measured.max_seq_len} tokens of"
                f" {measured.feature}.max_seq_len; lower the one or raise the other",
                involves=(layers.locate(measured.feature, "max_seq_len"), layers.locate("evaluation", "metrics")),
            )

    def _metric_mistakes(self, layers: Layers, *, measured: Stage, rewarded: Stage | None) -> Iterator[Mistake]:
        """Yield metrics in the expert's own settings that it cannot have; in other layers, only if none is left."""
        able = [name for name in METRICS if measurable(name, measured=measured, rewarded=rewarded)]
        left = [name for name in self.metrics if name in able]
        place = layers.locate("evaluation", "metrics")
        if not layers.gives("evaluation", "metrics") or (place[0] != "experts" and (left or not able)):
            return
        right = f"write what can be measured, such as `{able[0]}`" if able else "remove evaluation.metrics"
        if left:
            right = "remove it"
        for name in self.metrics:
            if name not in able:
                text = f"{not_measurable(name, expert=layers.expert, measured=measured)}; {right}"
                yield Mistake(place, text, involves=(("experts", layers.expert, "stages"),))


def measurable(name: str, *, measured: Stage, rewarded: Stage | None) -> bool:
    """Return whether an expert with these stages can have a metric, or a part of one."""
    return measured.model_class.predicts_tokens and (rewarded is not None or metric_of(name).needs != "reward")


def not_measurable(name: str, *, expert: str, measured: Stage) -> str:
    """Return why an expert cannot have a metric; for cases where `measurable` is False."""
    if not measured.model_class.predicts_tokens:
        noun = measured.model_class.noun
        return f"{shown(name)} is measured only for a {CAUSAL.noun}, and `{expert}.{measured.feature}` trains a {noun}"
    return f"{shown(name)} is measured only for an expert with the stage {listed(_REWARDED)}"


_OPTIONS: dict[str, Any] = {
    name: (metric, setting((metric.__doc__ or "").partition("\n")[0], default=metric()))
    for name, metric in METRICS.items()
    if metric.model_fields
}
# This class also holds the settings of every metric that has settings, under the metric's name.
EvaluationSettings: Any = create_model(
    "EvaluationSettings", __base__=Evaluation, __doc__=Evaluation.__doc__, **_OPTIONS
)
