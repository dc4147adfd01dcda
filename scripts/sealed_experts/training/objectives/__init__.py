"""Objectives: one module each. An objective is a stage of an expert's chain, and the one loop trains them all.

Import torch only inside functions: planning the workflow must not load it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sealed_experts.features import Feature, Features
from sealed_experts.models.classes import CAUSAL, ModelClass
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.fields import Group, is_public, plain, setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake, shown, suggestion
from sealed_experts.training.frozen_model import FrozenModel

if TYPE_CHECKING:
    from sealed_experts.data.templates import Encoded
    from sealed_experts.rewards import Scoring
    from sealed_experts.training.objective import Materials, Objective

MOST_STEPS = 10_000_000  # accounting for more would take hours


class Stage(Feature, Group):
    """A stage. Its fields are its settings, including those of the loop; `objective` makes the training objective."""

    learning_rate: float = setting("AdamW's learning rate.", default=1e-4, gt=0, public=True)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.01, ge=0, public=True)
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "Learning rate after the warmup: `constant`, or falling to zero over all steps (`cosine`, `linear`).",
        default="constant",
        public=True,
    )
    warmup_steps: int = setting("Steps of linear warmup.", default=0, ge=0, public=True)
    max_grad_norm: float = setting(
        "Clip the whole (noised) gradient to this norm before the optimizer; this is not the privacy clip.",
        default=1.0,
        gt=0,
    )
    max_seq_len: int = setting("Longest example in tokens.", default=512, ge=8, public=True)
    long_rows: Literal["cut", "drop", "refuse"] = setting(
        "For a record that is too long: `cut` its end, `drop` it, or `refuse` the data.", default="cut", public=True
    )
    epochs: float | None = setting(
        "Length of the training in passes over the data, instead of a number of steps; under privacy, the expected"
        " number of passes.",
        default=None,
        gt=0,
        le=1_000_000,
        public=True,
    )
    patience: int | None = setting(
        "Stop after this many validations in a row without a better `monitor`. Under privacy, this setting and"
        " `keep: best` need a public validation set.",
        default=None,
        ge=1,
    )
    keep: Literal["best", "last"] | None = setting(
        "The weights in the adapter file: those of the last step, or those of the validation with the best `monitor`."
        " Default: `best` if `patience` is given, else `last`.",
        default=None,
    )
    monitor: str | None = setting(
        "The validation figure that `patience` and `keep: best` use; by default the stage's first one (`val_loss` for"
        " sft, `val_reward` for reinforce).",
        default=None,
        max_length=100,
    )
    validation: str | None = setting(
        "Dataset with held-out records for validation; overrides the expert's `validation`.",
        default=None,
        min_length=1,
    )
    eval_steps: int = setting("Validate every this many steps.", default=100, ge=1)
    eval_examples: int = setting("Validate on this many held-out records at most, the first ones.", default=512, ge=1)
    log_steps: int = setting("Log every this many steps.", default=25, ge=1, operation=True)
    checkpoint_steps: int = setting("Checkpoint every this many steps.", default=250, ge=1, operation=True)
    checkpoint_minutes: float = setting(
        "Checkpoint at least every this many minutes.", default=10.0, gt=0, operation=True
    )
    keep_checkpoints: int = setting("How many of the newest checkpoints to keep.", default=2, ge=1, operation=True)
    token_budget: Annotated[int, Field(ge=16)] | Literal["auto"] = setting(
        "Largest number of tokens in one physical batch, including padding; `auto`: what fits the device and the base.",
        default="auto",
        operation=True,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "Recompute activations to save memory; `auto`: only if memory is short.", default="auto", operation=True
    )
    threads: int = setting("Processor threads of the trainer.", default=2, ge=1, operation=True)
    processes_per_job: int | None = setting(
        "Processes that share each batch of a job; by default one, or on GPUs one for each of `gpus`.",
        default=None,
        ge=1,
        le=1024,
        operation=True,
    )
    gpus: int | None = setting(
        "Number of GPUs, if the job runs on GPUs; each process uses one.",
        default=None,
        ge=1,
        le=1024,
        operation=True,
    )
    sync_steps: int = setting(
        "With several processes: compare their weights every this many steps, and before each checkpoint.",
        default=25,
        ge=1,
        operation=True,
    )
    process_timeout_minutes: float = setting(
        "Stop the job if processes wait longer than this for one another, for example while one validates.",
        default=60.0,
        gt=0,
        le=10_000,
        operation=True,
    )
    privacy: PrivacySettings = setting(
        "Privacy of this stage; overrides the expert's `privacy`.", default=PrivacySettings()
    )

    revision: ClassVar[int] = 1  # raise it when the meaning of the stage changes
    follows: ClassVar[bool] = False  # whether it needs an earlier stage
    records: ClassVar[tuple[str, ...]] = ("instruction", "chat")  # the kinds of records that it can learn from
    # Whether it samples answers (`max_new_tokens`, `temperature`, `top_p`) and scores them with a reward; and the names
    # of the settings that make this reward.
    scores_answers: ClassVar[bool] = False
    reward_settings: ClassVar[tuple[str, ...]] = ()
    model_class: ClassVar[ModelClass] = CAUSAL  # the class of model that the base is loaded as
    # Names of its files in results/experts/{expert}/{its folder}/.
    adapter_file: ClassVar[str] = "adapter_final.pt"
    metrics_file: ClassVar[str] = "metrics.json"
    # Figures of its log that `watch` shows: {column heading: (name in metrics.jsonl, name in words)}.
    watched: ClassVar[Mapping[str, tuple[str, str]]] = {
        "Loss": ("loss", "loss"),
        "Held-out loss": ("val_loss", "validation loss"),
    }
    # Figures that `patience` and `keep: best` may use: {name in metrics.jsonl: whether smaller is better}.
    monitored: ClassVar[Mapping[str, bool]] = {"val_loss": True}
    # Names of the settings that give the number of steps and the logical batch.
    steps_setting: ClassVar[str] = "max_steps"
    batch_setting: ClassVar[str] = "batch_size"

    @classmethod
    def folder(cls) -> str:
        """Return the name of the stage's folder."""
        return cls.feature

    def objective(self, materials: "Materials") -> "Objective":
        """Return the training objective, made from what the stage has loaded.

        Raises:
            UserError: the objective needs something that cannot be used.
        """
        raise NotImplementedError

    def made_reward(self) -> "Scoring | None":
        """Return what scores answers; None for a stage without a reward.

        Raises:
            UserError: it cannot be made.
        """
        return None

    def model_options(self) -> dict[str, Any]:
        """Return values that override the base's config.json, such as the number of labels of a classifier."""
        return {}

    def models(self) -> Mapping[str, FrozenModel]:
        """Return the other adapters that the stage learns from, by the setting that names each."""
        return {}

    def files(self) -> list[str]:
        """Return further files that decide the numbers, besides data and base. An edit of one makes the stage stale."""
        return []

    def excess(self, rows: "Sequence[Encoded]") -> str:
        """Return why a record is too long, from its complete rows of tokens; an empty text if it fits.

        Each record is decided alone: under privacy, no other record may have an influence.
        """
        longest = max(len(row.ids) for row in rows)
        return "" if longest <= self.max_seq_len else f"it has {longest} tokens"

    def defect(self, rows: "Sequence[Encoded]") -> str:
        """Return why a record cannot be learned once its rows are cut to `max_seq_len`; an empty text if it can."""
        return ""

    def chosen(self) -> Iterator[type[Feature]]:
        """Yield the features in use: this stage, and the features that its settings name."""
        yield type(self)

    def code(self) -> dict[str, str]:
        """Return digests of the user's code that the stage runs, by module. Call it after `objective`."""
        return {}

    def summary(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures that only this stage's metrics file has, from the content of its adapter file."""
        return {}

    @property
    def logical_batch(self) -> int:
        """Units per optimizer step; under privacy, their expected number."""
        return getattr(self, self.batch_setting)

    @property
    def keeps_best(self) -> bool:
        """Whether the adapter file holds the weights of the best validation."""
        return self.keep == "best" or (self.keep is None and self.patience is not None)

    @property
    def chooses(self) -> bool:
        """Whether validation decides something that is released."""
        return self.keeps_best or self.patience is not None

    @property
    def decided_by(self) -> str:
        """Name of the validation figure that decides."""
        return self.monitor or next(iter(self.monitored))

    def steps(self, *, units: int) -> int:
        """Return the number of optimizer steps for `units` units of privacy.

        Without privacy, the last batch of an epoch holds the remaining units. Under privacy each step draws
        independently, so that epochs · units / batch steps see every unit `epochs` times in expectation.
        """
        if self.epochs is None:
            return getattr(self, self.steps_setting)
        batches = Fraction(units, self.logical_batch)
        return math.ceil(Fraction(str(self.epochs)) * (batches if self.privacy.enabled else math.ceil(batches)))

    def numbers(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, as plain data in one form.

        Privacy settings are part of it only if privacy is on. `validation` is not: the validation records count
        instead of their dataset's name.
        """
        without = {"validation", "epochs" if self.epochs is None else self.steps_setting}
        numbers = {
            name: value
            for name, value in self.part(operation=False).items()
            if value is not None and name not in without
        }
        return numbers if self.privacy.enabled else numbers | {"privacy": plain(PrivacySettings(enabled=False))}

    @classmethod
    def published(cls, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that a package may state, as plain data."""
        names = [name for name, field in cls.model_fields.items() if is_public(field)]
        return {name: numbers[name] for name in names if numbers.get(name) is not None}

    def query_noise(self) -> Mapping[str, float]:
        """Return the noise multiplier of each query: what a step releases about its draw besides the gradient."""
        return {}

    def processes(self, *, on_gpus: bool) -> int:
        """Return how many processes share a job of this stage."""
        return self.processes_per_job or (self.gpus or 1 if on_gpus else 1)

    def settled(self) -> "Stage":
        """Return these settings with all dependent values filled in, so that two spellings of the same are equal."""
        return self

    def mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield settings that do not fit together, although each value is valid alone."""
        name = self.feature
        yield from _doubled_mistakes(name, layers)
        steps = getattr(self, self.steps_setting)
        if self.epochs is None and self.warmup_steps > steps:
            yield Mistake(
                layers.locate(name, "warmup_steps"),
                f"{self.warmup_steps} is above {self.steps_setting}, which is {steps}; the warmup must end within"
                " the training",
                involves=(layers.locate(name, self.steps_setting),),
            )
        if self.monitor is not None and self.monitor not in self.monitored:
            yield Mistake(
                layers.locate(name, "monitor"),
                f"{shown(self.monitor)} is not measured by {name}; {suggestion(self.monitor, self.monitored)}",
            )
        if self.epochs is None and self.patience and self.patience * self.eval_steps >= steps:
            yield Mistake(
                layers.locate(name, "patience"),
                f"{self.patience} validations, one every {self.eval_steps} steps, end no earlier than the {steps} steps"
                f" of the training: lower it or {name}.eval_steps, or remove it",
                involves=(layers.locate(name, "eval_steps"), layers.locate(name, self.steps_setting)),
            )
        if self.keep == "last" and self.patience is not None:
            yield Mistake(
                layers.locate(name, "keep"),
                "`last` does not fit patience: the last weights are those that have not got better for so long; remove"
                " one of the two",
                involves=(layers.locate(name, "patience"),),
            )
        if self.gpus and self.processes_per_job and self.gpus != self.processes_per_job:
            yield Mistake(
                layers.locate(name, "processes_per_job"),
                f"{self.processes_per_job} processes do not fit gpus, which is {self.gpus}: each process has one GPU of"
                " its own; give one of the two",
                involves=(layers.locate(name, "gpus"),),
            )

    def choice_mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield mistakes in settings that depend on another setting's choice. Called also for stages in no chain."""
        yield from ()


def _doubled_mistakes(stage: str, layers: Layers) -> Iterator[Mistake]:
    for place, one, other in layers.doubled(stage):
        if one == ["batch_size"]:
            yield Mistake(
                (*place, "batch_size"),
                "the logical batch is given twice; keep batch_size, or micro_batch_size and gradient_accumulation,"
                " whose product it is",
            )
        else:
            yield Mistake((*place, *one), f"the length of the training is given twice; keep {one[0]} or {other[0]}")


STAGES = Features(Stage, noun="stage")


def stage_of_folder(folder: str) -> str:
    """Return the name of the stage that a folder of an expert belongs to."""
    return next((name for name, stage in STAGES.items() if stage.folder() == folder), folder)


def stage_of(state: Mapping[str, Any]) -> Stage:
    """Return the settings of the stage that made an adapter file with the content `state`."""
    return parse_group(STAGES[state["subject"]["stage"]], state["settings"]["training"])
