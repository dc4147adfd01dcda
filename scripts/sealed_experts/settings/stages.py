# ruff: noqa: RUF009 (`setting` is dataclasses.field with a description)
"""The settings of an expert's stages, and of their privacy."""

import dataclasses
from typing import ClassVar

from sealed_experts.settings.fields import Group, setting
from sealed_experts.settings.rewards import REWARD_NAME, RewardOptions

_MOST_STEPS = 10_000_000  # accounting for more would take hours


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacySettings(Group):
    """Differential privacy of a stage. Neighbouring datasets differ in one unit, added or removed."""

    enabled: bool = setting("Train under differential privacy.", default=True)
    mode: str = setting(
        "`release`: the key of draws and noise is secret. `reproducible`: it follows from the seed; no ε is claimed.",
        default="release",
        enum=["release", "reproducible"],
    )
    noise_multiplier: float | str = setting(
        "Standard deviation of the noise over the clipping norm, or `auto`: the last step then ends at target_epsilon.",
        default=1.0,
        minimum=1e-3,
        maximum=1e6,
        pattern="^auto$",
    )
    target_epsilon: float = setting("Training stops before ε would exceed this.", default=8.0, exclusiveMinimum=0)
    delta: float = setting("The δ at which ε is stated.", default=1e-5, minimum=1e-12, exclusiveMaximum=1)
    max_grad_norm: float = setting("Clipping norm of each unit's gradient.", default=1.0, exclusiveMinimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(Group):
    """What every stage of an expert's chain has, whatever it trains: the one loop's own settings."""

    learning_rate: float = setting("AdamW's learning rate.", default=1e-4, exclusiveMinimum=0)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.01, minimum=0)
    schedule: str = setting(
        "`constant`, or down to zero over all steps: `cosine` or `linear`; each after the warmup.",
        default="constant",
        enum=["constant", "cosine", "linear"],
    )
    warmup_steps: int = setting("Steps of linear warmup.", default=0, minimum=0)
    max_grad_norm: float = setting(
        "Optimizer's clip of the whole (noised) gradient; not the privacy clip.", default=1.0, exclusiveMinimum=0
    )
    max_seq_len: int = setting("Longest example in tokens; longer answers are cut.", default=512, minimum=8)
    eval_steps: int = setting("Validate every this many steps.", default=100, minimum=1)
    eval_examples: int = setting(
        "Validate on this many held-out records at most, the first ones.", default=512, minimum=1
    )
    log_steps: int = setting("Log every this many steps.", default=25, minimum=1, operation=True)
    checkpoint_steps: int = setting("Checkpoint every this many steps.", default=250, minimum=1, operation=True)
    checkpoint_minutes: float = setting(
        "Checkpoint at least this often.", default=10.0, exclusiveMinimum=0, operation=True
    )
    keep_checkpoints: int = setting("How many of the newest checkpoints to keep.", default=2, minimum=1, operation=True)
    token_budget: int = setting(
        "Tokens, padding included, of one physical batch.", default=4096, minimum=16, operation=True
    )
    gradient_checkpointing: str = setting(
        "Recompute activations to save memory; `auto`: when memory needs it.",
        default="auto",
        enum=["auto", "on", "off"],
        operation=True,
    )
    threads: int = setting("Processor threads of the trainer.", default=2, minimum=1, operation=True)
    processes_per_job: int | None = setting(
        "Processes that share each batch of a job; by default one, on GPUs one for each of `gpus`.",
        default=None,
        minimum=1,
        maximum=1024,
        operation=True,
    )
    gpus: int | None = setting(
        "GPUs of a job where it runs on GPUs; each process has one of its own.",
        default=None,
        minimum=1,
        maximum=1024,
        operation=True,
    )
    sync_steps: int = setting(
        "With several processes: compare their weights this often, and before each checkpoint.",
        default=25,
        minimum=1,
        operation=True,
    )
    process_timeout_minutes: float = setting(
        "How long processes wait for one another, also while one validates, before the job stops.",
        default=60.0,
        exclusiveMinimum=0,
        maximum=10_000,
        operation=True,
    )
    privacy: PrivacySettings = setting(
        "Privacy of this stage; beats a `privacy` beside the stage.", default_factory=PrivacySettings
    )

    revision: ClassVar[int] = 1  # raised when the meaning of the stage changes
    follows: ClassVar[bool] = False  # whether it needs a stage before it

    @property
    def logical_batch(self) -> int:
        """Units an optimizer step; under privacy, their expected number."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Optimizer steps that are asked for."""
        raise NotImplementedError

    def processes(self, *, on_gpus: bool) -> int:
        """Return how many processes share a job of this stage."""
        return self.processes_per_job or (self.gpus or 1 if on_gpus else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftSettings(StageSettings):
    """Supervised fine-tuning."""

    batch_size: int | None = setting(
        "Logical batch: examples a step (under privacy, the expected number). Default 8.", default=None, minimum=1
    )
    micro_batch_size: int | None = setting(
        "With gradient_accumulation, another way to give the logical batch: their product.", default=None, minimum=1
    )
    gradient_accumulation: int | None = setting("See micro_batch_size.", default=None, minimum=1)
    max_steps: int = setting("Optimizer steps.", default=2000, minimum=1, maximum=_MOST_STEPS)

    @property
    def logical_batch(self) -> int:
        """Examples an optimizer step: `batch_size`, or the product of the two other settings, or 8."""
        if self.micro_batch_size is not None and self.gradient_accumulation is not None:
            return self.micro_batch_size * self.gradient_accumulation
        return self.batch_size or 8

    @property
    def steps(self) -> int:
        """`max_steps`."""
        return self.max_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceSettings(StageSettings):
    """Policy gradients (REINFORCE) on answers that the model samples and a reward scores."""

    learning_rate: float = setting("AdamW's learning rate.", default=1e-5, exclusiveMinimum=0)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.0, minimum=0)
    max_seq_len: int = setting(
        "Longest prompt plus max_new_tokens, in tokens; prompts are padded to it, held-out answers cut at it.",
        default=512,
        minimum=8,
    )
    eval_steps: int = setting("Sample and score held-out prompts every this many steps.", default=50, minimum=1)
    eval_examples: int = setting("Score this many held-out prompts at most, the first ones.", default=256, minimum=1)
    log_steps: int = setting("Log every this many steps.", default=1, minimum=1, operation=True)
    checkpoint_steps: int = setting("Checkpoint every this many steps.", default=100, minimum=1, operation=True)
    rollout_batch_size: int = setting(
        "Prompts a step, one answer each (under privacy, the expected number).", default=1, minimum=1
    )
    total_steps: int = setting("Optimizer steps.", default=500, minimum=1, maximum=_MOST_STEPS)
    max_new_tokens: int = setting("Longest sampled answer in tokens.", default=64, minimum=1)
    temperature: float = setting(
        "Divides the logits that answers are sampled from.", default=0.7, minimum=1e-3, maximum=1e3
    )
    top_p: float = setting(
        "Sample from the smallest set of likeliest tokens that holds this probability; 1 takes all.",
        default=0.9,
        minimum=1e-3,
        maximum=1,
    )
    reward: str = setting(
        "What scores an answer: `finance`, `keyword_contains`, `length_penalty`, `format_compliance`, `composite`, or"
        " `module:function` of your own.",
        default="finance",
        pattern=REWARD_NAME,
    )
    reward_options: RewardOptions = setting("The reward's own settings.", default_factory=RewardOptions)
    reward_scale: float = setting("Multiplies every advantage.", default=1.0, minimum=1e-6, maximum=1e6)
    baseline_decay: float = setting(
        "Decay of the moving average of mean rewards that is subtracted from each reward.",
        default=0.99,
        minimum=0,
        exclusiveMaximum=1,
    )
    baseline_noise_multiplier: float = setting(
        "Under privacy, the noise on a step's sum of rewards, in units of one reward.",
        default=5.0,
        minimum=1e-3,
        maximum=1e6,
    )
    kl_coef: float = setting(
        "Weight of the divergence from the adapter it started from.", default=0.01, minimum=0, maximum=1e6
    )
    entropy_coef: float = setting("Weight of the entropy bonus.", default=0.01, minimum=0, maximum=1e6)

    follows: ClassVar[bool] = True

    @property
    def logical_batch(self) -> int:
        """`rollout_batch_size`."""
        return self.rollout_batch_size

    @property
    def steps(self) -> int:
        """`total_steps`."""
        return self.total_steps
