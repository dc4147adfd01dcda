"""The settings that a configuration can hold, and where; and the resolved settings of a whole run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import create_model

from sealed_experts.data.sources import DATASET, Source
from sealed_experts.evaluation.settings import Evaluation, EvaluationSettings
from sealed_experts.metrics import METRICS
from sealed_experts.models.adapters import ADAPTER, AdapterKind
from sealed_experts.models.settings import BaseSettings
from sealed_experts.moe.settings import MoeSettings
from sealed_experts.packages.settings import PackageSettings, RoutingSettings
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.checking import LARGEST_INTEGER
from sealed_experts.settings.fields import Distinct, Group, Open, setting, text
from sealed_experts.settings.messages import listed
from sealed_experts.settings.texts import Lines, Name, Version
from sealed_experts.training.objectives import STAGES, Stage

_StageName: Any = Literal[tuple(STAGES)]
_Measured = Annotated[
    str, text(rf"^({'|'.join(METRICS)})(\.[^.].*)?$", f"one of {listed(METRICS)}, or a part of one (`reward.safety`)")
]
_Device = Literal["auto", "cpu", "cuda"]


class Inherited(Group):
    """Single settings of an expert that `defaults` and `overrides` can give too."""

    template: Literal["alpaca", "chatml", "tokenizer"] = setting(
        "How instruction, input and answer become text: `alpaca` (### Instruction / ### Response), `chatml`, or the"
        " `tokenizer`'s own chat template.",
        default="alpaca",
    )
    validation: str | None = setting(
        "Dataset whose held-out records it is validated and evaluated on; absent, the one that it learns from.",
        default=None,
        min_length=1,
    )
    eval_answers: int = setting(
        "Answers to each held-out prompt when the stages are compared; more of them narrow the intervals. At"
        " `evaluation.temperature: 0` they would all be one.",
        default=1,
        ge=1,
        le=100,
    )
    select: Literal["last", "best"] = setting(
        "Which stage is shipped: the `last` one, or the `best` by `select_metric` on held-out records.", default="last"
    )
    select_metric: _Measured = setting(
        "With `select: best`: what decides, a metric of the evaluation (the highest `reward`, the lowest `loss`).",
        default="reward",
    )


class Own(Group):
    """Settings that only the expert itself can give."""

    dataset: str = setting("The dataset that it learns from.", min_length=1)
    stages: Distinct[_StageName] = setting("The chain of training stages, in order.", default=("sft",), min_length=1)
    version: Version = setting("Version of the package.", default="1.0.0")
    description: Lines = setting("One line about the expert, carried by its package.", default="")
    routing: RoutingSettings = setting("Which questions it answers.", default=RoutingSettings())


class ExpertSettings(Own, Inherited):
    """One expert, with everything it inherits filled in.

    `training` holds the settings of the stages in its chain, by name. `configured` also holds those of other stages
    that the configuration mentions.
    """

    name: str
    adapter: AdapterKind
    training: Mapping[str, Stage]
    configured: Mapping[str, Stage]
    package: PackageSettings
    evaluation: Evaluation

    @property
    def rewarded(self) -> Stage | None:
        """The last stage of its chain that has a reward."""
        return next((stage for stage in reversed(tuple(self.training.values())) if stage.scores_answers), None)

    @property
    def measured(self) -> Stage:
        """The stage whose held-out records, lengths and threads the evaluation uses for all models.

        It is the last stage with a reward, because answers are compared with those of that stage; else the last stage.
        """
        return self.rewarded or self.stage(self.stages[-1])

    def stage(self, name: str) -> Stage:
        """Return the settings of one stage of its chain.

        Raises:
            KeyError: no such stage.
        """
        return self.training[name]

    def validation_of(self, stage: str | None = None) -> str:
        """Return the dataset of held-out records for validating a stage or, without `stage`, for evaluating the expert.

        A stage's own `validation` comes before the expert's. Without either it is the dataset that the expert learns
        from.

        Raises:
            KeyError: no such stage.
        """
        own = self.stage(stage).validation if stage else None
        return own or self.validation or self.dataset


class Top(Group):
    """Settings of the whole run."""

    seed: int = setting("Seed of everything that is not secret.", default=42, ge=0, le=LARGEST_INTEGER)
    device: _Device = setting("Where models run; `auto`: the GPU when there is one.", default="auto", operation=True)
    base: BaseSettings = setting("The frozen language model.", default=BaseSettings())
    moe: MoeSettings = setting("The assembled mixture.", default=MoeSettings())


class Settings(Top):
    """A whole run, resolved. The experts have the configuration's order, which decides the router's ties."""

    datasets: Mapping[str, Source]
    experts: tuple[ExpertSettings, ...]

    @property
    def by_name(self) -> dict[str, ExpertSettings]:
        """The experts by name."""
        return {expert.name: expert for expert in self.experts}


def _layer_fields() -> dict[str, Any]:
    """Return the groups of settings that `defaults`, an expert and `overrides` can hold."""
    stages = {name: (stage, setting(_summary(stage), default=stage())) for name, stage in STAGES.items()}
    return {
        "adapter": (Annotated[Open, ADAPTER], setting("The trainable part.", default={})),
        **stages,
        "package": (PackageSettings, setting("Its package.", default=PackageSettings())),
        "evaluation": (EvaluationSettings, setting(_summary(EvaluationSettings), default=EvaluationSettings())),
        "privacy": (
            PrivacySettings,
            setting("Privacy of every stage that does not say otherwise.", default=PrivacySettings()),
        ),
    }


def _summary(group: type[Group]) -> str:
    return (group.__doc__ or "").partition("\n")[0]


Layer = create_model("Layer", __base__=Inherited, **_layer_fields())
ExpertLayer = create_model("ExpertLayer", __base__=(Own, Inherited), **_layer_fields())
_Datasets = dict[Name, Annotated[Open, DATASET]]
Overrides = create_model(
    "Overrides",
    __base__=Layer,
    base=(BaseSettings, setting("Laid over the base.", default=BaseSettings())),
    datasets=(_Datasets, setting("Laid over the datasets.", default={})),
)
Document = create_model(
    "Document",
    __base__=Top,
    datasets=(_Datasets, setting("The data, by name.")),
    defaults=(Layer, setting("What every expert inherits.", default=Layer())),
    experts=(
        dict[Name, ExpertLayer],  # type: ignore[valid-type]
        setting("The experts, by name; their order decides the router's ties.", min_length=1),
    ),
    overrides=(Overrides, setting("Applied last, over every expert.", default=Overrides())),
)
