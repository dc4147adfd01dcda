"""Settings of policy gradients on sampled answers."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from sealed_experts.rewards import REWARDS, RewardName
from sealed_experts.rewards.making.checks import reward_mistakes
from sealed_experts.rewards.making.maker import described_reward
from sealed_experts.settings.choices import OptionsOf
from sealed_experts.settings.fields import Open, setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake
from sealed_experts.training.stages import MOST_STEPS, Stage

MEAN_REWARD = "mean_reward"


class Reinforce(Stage):
    """Policy gradients (REINFORCE) on answers that the model samples and a reward scores."""

    learning_rate: float = setting("AdamW's learning rate.", default=1e-5, gt=0, public=True)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.0, ge=0, public=True)
    max_seq_len: int = setting(
        "Longest prompt plus max_new_tokens, in tokens; prompts are padded to it, held-out answers cut at it.",
        default=512,
        ge=8,
        public=True,
    )
    eval_steps: int = setting("Sample and score held-out prompts every this many steps.", default=50, ge=1)
    eval_examples: int = setting("Score this many held-out prompts at most, the first ones.", default=256, ge=1)
    log_steps: int = setting("Log every this many steps.", default=1, ge=1, operation=True)
    checkpoint_steps: int = setting("Checkpoint every this many steps.", default=100, ge=1, operation=True)
    rollout_batch_size: int = setting(
        "Prompts a step, one answer each (under privacy, the expected number).", default=1, ge=1, public=True
    )
    total_steps: int = setting("Optimizer steps.", default=500, ge=1, le=MOST_STEPS)
    max_new_tokens: int = setting("Longest sampled answer in tokens.", default=64, ge=1, public=True)
    temperature: float = setting(
        "Divides the logits that answers are sampled from.", default=0.7, ge=1e-3, le=1e3, public=True
    )
    top_p: float = setting(
        "Sample from the smallest set of likeliest tokens that holds this probability; 1 takes all.",
        default=0.9,
        ge=1e-3,
        le=1,
        public=True,
    )
    reward: RewardName = setting(
        "What scores an answer: a reward by its name, or `module:function` of your own.",
        default="finance",
        public=True,
    )
    reward_options: Annotated[Open, OptionsOf(REWARDS)] = setting("The reward's own settings.", default={})
    reward_scale: float = setting("Multiplies every advantage.", default=1.0, ge=1e-6, le=1e6)
    baseline_decay: float = setting(
        "Decay of the moving average of mean rewards that is subtracted from each reward.", default=0.99, ge=0, lt=1
    )
    baseline_noise_multiplier: float = setting(
        "Under privacy, the noise on a step's sum of rewards, in units of one reward.", default=5.0, ge=1e-3, le=1e6
    )
    kl_coef: float = setting(
        "Weight of the divergence from the adapter it started from.", default=0.01, ge=0, le=1e6, public=True
    )
    entropy_coef: float = setting("Weight of the entropy bonus.", default=0.01, ge=0, le=1e6, public=True)

    follows: ClassVar[bool] = True
    order: ClassVar[int] = 1
    steps_setting: ClassVar[str] = "total_steps"
    batch_setting: ClassVar[str] = "rollout_batch_size"
    scores_answers: ClassVar[bool] = True

    @property
    def logical_batch(self) -> int:
        """`rollout_batch_size`."""
        return self.rollout_batch_size

    @property
    def steps(self) -> int:
        """`total_steps`."""
        return self.total_steps

    def query_noise(self) -> Mapping[str, float]:
        """The noised mean reward, for the baseline."""
        return {MEAN_REWARD: self.baseline_noise_multiplier}

    def settled(self) -> "Reinforce":
        """Return these settings with all options of the reward."""
        return self.model_copy(update={"reward_options": described_reward(self.reward, self.reward_options).options()})

    def mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield what does not fit, lengths among it."""
        yield from super().mistakes(layers)
        if self.max_new_tokens >= self.max_seq_len:
            yield Mistake(
                layers.locate(self.feature, "max_new_tokens"),
                f"{self.max_new_tokens} leaves no room for a prompt in the {self.max_seq_len} tokens that max_seq_len"
                " allows for both; lower the one or raise the other",
                involves=(layers.locate(self.feature, "max_seq_len"),),
            )

    def choice_mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield what is wrong with the reward."""
        yield from reward_mistakes(self.reward, self.reward_options, layers, self.feature)
