"""What is trained: one module an objective, each a stage of an expert's chain, all of them served by the one loop.

Nothing here imports torch but inside functions: the workflow is planned without it.
"""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sealed_experts.features import Feature, Features
from sealed_experts.models.classes import CAUSAL, ModelClass
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.fields import Group, is_public, plain, setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake, shown, suggestion
from sealed_experts.training.frozen_models import FrozenModel

if TYPE_CHECKING:
    from sealed_experts.rewards import Scoring
    from sealed_experts.training.objective import Materials, Objective

MOST_STEPS = 10_000_000  # accounting for more would take hours


class Stage(Feature, Group):
    """A stage: its fields are its settings, those of the one loop among them, and `objective` makes what is trained."""

    learning_rate: float = setting("AdamW's learning rate.", default=1e-4, gt=0, public=True)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.01, ge=0, public=True)
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "`constant`, or down to zero over all steps: `cosine` or `linear`; each after the warmup.",
        default="constant",
        public=True,
    )
    warmup_steps: int = setting("Steps of linear warmup.", default=0, ge=0, public=True)
    max_grad_norm: float = setting(
        "Optimizer's clip of the whole (noised) gradient; not the privacy clip.", default=1.0, gt=0
    )
    max_seq_len: int = setting("Longest example in tokens; longer answers are cut.", default=512, ge=8, public=True)
    epochs: float | None = setting(
        "Length of the training in passes over the data, instead of a number of steps; under privacy, the expected"
        " number of passes.",
        default=None,
        gt=0,
        le=1_000_000,
        public=True,
    )
    patience: int | None = setting(
        "Stop after this many validations in a row without a better `monitor`. Under privacy it needs a public"
        " validation set, as `keep: best` does.",
        default=None,
        ge=1,
    )
    keep: Literal["best", "last"] | None = setting(
        "Whose weights the adapter file holds: the last step's, or those of the validation with the best `monitor`."
        " Default: `best` where `patience` is given, else `last`.",
        default=None,
    )
    monitor: str | None = setting(
        "The figure of validation that `patience` and `keep: best` look at; by default the first one of the stage"
        " (`val_loss` of sft, `val_reward` of reinforce).",
        default=None,
        max_length=100,
    )
    validation: str | None = setting(
        "Dataset whose held-out records it is validated on; beats a `validation` beside the stage.",
        default=None,
        min_length=1,
    )
    eval_steps: int = setting("Validate every this many steps.", default=100, ge=1)
    eval_examples: int = setting("Validate on this many held-out records at most, the first ones.", default=512, ge=1)
    log_steps: int = setting("Log every this many steps.", default=25, ge=1, operation=True)
    checkpoint_steps: int = setting("Checkpoint every this many steps.", default=250, ge=1, operation=True)
    checkpoint_minutes: float = setting("Checkpoint at least this often.", default=10.0, gt=0, operation=True)
    keep_checkpoints: int = setting("How many of the newest checkpoints to keep.", default=2, ge=1, operation=True)
    token_budget: int = setting("Tokens, padding included, of one physical batch.", default=4096, ge=16, operation=True)
    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "Recompute activations to save memory; `auto`: when memory needs it.", default="auto", operation=True
    )
    threads: int = setting("Processor threads of the trainer.", default=2, ge=1, operation=True)
    processes_per_job: int | None = setting(
        "Processes that share each batch of a job; by default one, on GPUs one for each of `gpus`.",
        default=None,
        ge=1,
        le=1024,
        operation=True,
    )
    gpus: int | None = setting(
        "GPUs of a job where it runs on GPUs; each process has one of its own.",
        default=None,
        ge=1,
        le=1024,
        operation=True,
    )
    sync_steps: int = setting(
        "With several processes: compare their weights this often, and before each checkpoint.",
        default=25,
        ge=1,
        operation=True,
    )
    process_timeout_minutes: float = setting(
        "How long processes wait for one another, also while one validates, before the job stops.",
        default=60.0,
        gt=0,
        le=10_000,
        operation=True,
    )
    privacy: PrivacySettings = setting(
        "Privacy of this stage; beats a `privacy` beside the stage.", default=PrivacySettings()
    )

    revision: ClassVar[int] = 1  # raised when the meaning of the stage changes
    follows: ClassVar[bool] = False  # whether it needs a stage before it
    records: ClassVar[tuple[str, ...]] = ("instruction", "chat")  # the kinds of records that it can learn from
    # Whether it samples answers (`max_new_tokens`, `temperature`, `top_p`) and has a reward for them; and the names of
    # those settings that make this reward.
    scores_answers: ClassVar[bool] = False
    reward_settings: ClassVar[tuple[str, ...]] = ()
    model_class: ClassVar[ModelClass] = CAUSAL  # as what the base is loaded
    # What it leaves in results/experts/{expert}/{its folder}/.
    adapter_file: ClassVar[str] = "adapter_final.pt"
    metrics_file: ClassVar[str] = "metrics.json"
    # Figures of its log that `watch` shows: {head of the column: (name in metrics.jsonl, in words)}.
    watched: ClassVar[Mapping[str, tuple[str, str]]] = {
        "Loss": ("loss", "loss"),
        "Held-out loss": ("val_loss", "validation loss"),
    }
    # What patience and the best weights may be decided by: {name in metrics.jsonl: whether less is better}.
    monitored: ClassVar[Mapping[str, bool]] = {"val_loss": True}
    # Names of the settings that give the number of steps and the logical batch.
    steps_setting: ClassVar[str] = "max_steps"
    batch_setting: ClassVar[str] = "batch_size"

    @classmethod
    def folder(cls) -> str:
        """Return the name of its folder."""
        return cls.feature

    def objective(self, materials: "Materials") -> "Objective":
        """Return what is trained, made of what the stage has loaded.

        Raises:
            UserError: something that it needs cannot be used.
        """
        raise NotImplementedError

    def made_reward(self) -> "Scoring | None":
        """Return what scores answers; None for a stage without a reward.

        Raises:
            UserError: it cannot be made.
        """
        return None

    def model_options(self) -> dict[str, Any]:
        """Return values that replace those of the base's config.json, such as the number of labels of a classifier."""
        return {}

    def models(self) -> Mapping[str, FrozenModel]:
        """Return the other adapters that it learns from, by the setting that names each."""
        return {}

    def files(self) -> list[str]:
        """Return the files that decide its numbers besides data and base: an edited one makes the stage stale."""
        return []

    def chosen(self) -> Iterator[type[Feature]]:
        """Yield the features that it uses: itself, and those that its settings name."""
        yield type(self)

    def code(self) -> dict[str, str]:
        """Return digests of the user's own code that it runs, by module, once its objective is made."""
        return {}

    def summary(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what its metrics file holds besides the figures of every stage, from its adapter file's content."""
        return {}

    @property
    def logical_batch(self) -> int:
        """Units an optimizer step; under privacy, their expected number."""
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
        """Name of the figure of validation that decides."""
        return self.monitor or next(iter(self.monitored))

    def steps(self, *, units: int) -> int:
        """Return the optimizer steps that are asked for, with `units` units of privacy to train on.

        Without privacy an epoch ends with a batch of what is left. Under it each step draws anew, so that
        epochs · units / batch steps see every unit `epochs` times in expectation.
        """
        if self.epochs is None:
            return getattr(self, self.steps_setting)
        batches = Fraction(units, self.logical_batch)
        return math.ceil(Fraction(str(self.epochs)) * (batches if self.privacy.enabled else math.ceil(batches)))

    def numbers(self) -> dict[str, Any]:
        """Return what decides numbers, as plain data in one spelling: what is given, and privacy where it is on.

        Which dataset validates is no part of it: its records are.
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
        """Return those of a stage's settings, as plain data, that a package may state."""
        names = [name for name, field in cls.model_fields.items() if is_public(field)]
        return {name: numbers[name] for name in names if numbers.get(name) is not None}

    def query_noise(self) -> Mapping[str, float]:
        """Return noise multipliers of what a step asks of its draw besides the gradient, by name."""
        return {}

    def processes(self, *, on_gpus: bool) -> int:
        """Return how many processes share a job of this stage."""
        return self.processes_per_job or (self.gpus or 1 if on_gpus else 1)

    def settled(self) -> "Stage":
        """Return these settings with what depends on others filled in: two spellings of the same are equal."""
        return self

    def mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield what does not fit within these settings, whose single values are right."""
        name = self.feature
        yield from _doubled_mistakes(name, layers)
        if self.epochs is None and self.warmup_steps > (steps := getattr(self, self.steps_setting)):
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
        """Yield what is wrong with settings whose meaning another one decides; asked of stages of no chain too."""
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
    """Return the settings of the stage that made an adapter file, whose content is `state`."""
    return parse_group(STAGES[state["subject"]["stage"]], state["settings"]["training"])
