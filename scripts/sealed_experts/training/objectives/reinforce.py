"""REINFORCE: the model samples answers, and their rewards make them more or less likely.

Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning" (1992), with a
moving average as the baseline.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sealed_experts.errors import UserError
from sealed_experts.features import Feature
from sealed_experts.rewards import REWARDS, RewardName, Scoring
from sealed_experts.rewards.making.checked import CheckedReward
from sealed_experts.rewards.making.checks import reward_mistakes
from sealed_experts.rewards.making.maker import described_reward, make_reward, reward_code, reward_source
from sealed_experts.settings.choices import OptionsOf
from sealed_experts.settings.fields import Open, setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake
from sealed_experts.training.baseline import Baseline
from sealed_experts.training.objective import Objective
from sealed_experts.training.objectives import MOST_STEPS, Stage

if TYPE_CHECKING:
    import torch

    from sealed_experts.data.templates import Encoded
    from sealed_experts.privacy.streams import Stream
    from sealed_experts.training.batches import Batch, Example
    from sealed_experts.training.objective import Materials
    from sealed_experts.training.scoring import Rollout

MEAN_REWARD = "mean_reward"


class Reinforce(Stage):
    """Policy gradients (REINFORCE) on answers that the model samples and a reward scores."""

    learning_rate: float = setting("AdamW's learning rate.", default=1e-5, gt=0, public=True)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.0, ge=0, public=True)
    max_seq_len: int = setting(
        "Longest prompt plus max_new_tokens, in tokens. Held-out answers are cut to this length.",
        default=512,
        ge=8,
        public=True,
    )
    long_rows: Literal["drop", "refuse"] = setting(
        "For a record whose prompt is too long: `drop` it, or `refuse` the data.", default="refuse", public=True
    )
    eval_steps: int = setting("Sample and score held-out prompts every this many steps.", default=50, ge=1)
    eval_examples: int = setting("Score this many held-out prompts at most, the first ones.", default=256, ge=1)
    log_steps: int = setting("Log every this many steps.", default=1, ge=1, operation=True)
    checkpoint_steps: int = setting("Checkpoint every this many steps.", default=100, ge=1, operation=True)
    rollout_batch_size: int = setting(
        "Prompts per step, one answer each (under privacy, the expected number).", default=1, ge=1, public=True
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
        "What scores an answer: a reward's name, or your own function as `module:function`.",
        default="finance",
        public=True,
    )
    reward_options: Annotated[Open, OptionsOf(REWARDS)] = setting("The reward's own settings.", default={})
    missing_eos_penalty: float = setting(
        "Subtracted from the reward of an answer that reaches max_new_tokens without an end. No reward is below 0.",
        default=0.0,
        ge=0,
        le=1,
        public=True,
    )
    reward_scale: float = setting("Multiplies every advantage.", default=1.0, ge=1e-6, le=1e6)
    baseline_decay: float = setting(
        "Decay of the moving average of mean rewards that is subtracted from each reward.", default=0.99, ge=0, lt=1
    )
    baseline_noise_multiplier: float = setting(
        "Under privacy: standard deviation of the noise on a step's sum of rewards (a reward is in [0, 1]).",
        default=5.0,
        ge=1e-3,
        le=1e6,
    )
    kl_coef: float = setting(
        "Weight of the KL divergence from the adapter that the stage starts from.",
        default=0.01,
        ge=0,
        le=1e6,
        public=True,
    )
    entropy_coef: float = setting("Weight of the entropy bonus.", default=0.01, ge=0, le=1e6, public=True)

    revision: ClassVar[int] = 2
    follows: ClassVar[bool] = True
    adapter_file: ClassVar[str] = "adapter_rl_final.pt"
    metrics_file: ClassVar[str] = "rl_metrics.json"
    watched: ClassVar[Mapping[str, tuple[str, str]]] = {
        "Reward": ("reward_mean", "reward"),
        "Held-out": ("val_reward", "held-out reward"),
        "KL": ("kl", "KL"),
    }
    monitored: ClassVar[Mapping[str, bool]] = {"val_reward": False, "val_loss": True}
    order: ClassVar[int] = 1
    steps_setting: ClassVar[str] = "total_steps"
    batch_setting: ClassVar[str] = "rollout_batch_size"
    scores_answers: ClassVar[bool] = True
    reward_settings: ClassVar[tuple[str, ...]] = ("reward", "reward_options")

    @classmethod
    def folder(cls) -> str:
        """`rl`."""
        return "rl"

    def objective(self, materials: "Materials") -> Objective:
        """Return policy gradients on the reward.

        Raises:
            UserError: the reward cannot be made.
        """
        return PolicyGradient(settings=self, reward=self.made_reward(), materials=materials)

    def excess(self, rows: "Sequence[Encoded]") -> str:
        """Return why a record's prompt leaves no room for an answer."""
        prompt = rows[0].prompt_length
        if prompt + self.max_new_tokens <= self.max_seq_len:
            return ""
        return f"its prompt has {prompt} tokens, and reinforce.max_new_tokens is {self.max_new_tokens}"

    def made_reward(self) -> CheckedReward:
        """Return the reward."""
        return make_reward(self.reward, self.reward_options)

    def files(self) -> list[str]:
        """Return the source file of the user's reward, if any: this code decides the numbers."""
        return [str(path) for path in reward_source(self.reward, self.reward_options)]

    def chosen(self) -> Iterator[type[Feature]]:
        """Yield this stage and the rewards that it uses."""
        yield from super().chosen()
        yield from described_reward(self.reward, self.reward_options).chosen()

    def code(self) -> dict[str, str]:
        """Return digests of the modules that the user's reward runs."""
        return reward_code(self.reward, self.reward_options)

    def summary(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return figures on held-out prompts before and after training, sampled with the same seed.

        KL and entropy are in nats per token, lengths in tokens.
        """
        validation = [line for line in state["history"] if "val_loss" in line]
        before, after = validation[0], state["kept"] or validation[-1]
        return {
            "reward": self.reward,
            "mean_reward_before": before["val_reward"],
            "mean_reward_after": after["val_reward"],
            "axes_before": before["val_axes"],
            "axes_after": after["val_axes"],
            "kl_after": after["val_kl"],
            "entropy_before": before["val_entropy"],
            "entropy_after": after["val_entropy"],
            "response_tokens_before": before["val_response_tokens"],
            "response_tokens_after": after["val_response_tokens"],
            "truncated_share_after": after["val_truncated_share"],
        }

    def query_noise(self) -> Mapping[str, float]:
        """Return the noise of the mean reward, which the baseline needs."""
        return {MEAN_REWARD: self.baseline_noise_multiplier}

    def settled(self) -> "Reinforce":
        """Return these settings with all options of the reward."""
        return self.model_copy(update={"reward_options": described_reward(self.reward, self.reward_options).options()})

    def mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield settings that do not fit together, such as lengths."""
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


class PolicyGradient(Objective):
    """Policy gradients on sampled answers.

    An answer's loss is -(advantage) · Σ log π + kl_coef · KL - entropy_coef · H over its tokens. The score term
    uses the policy that sampled the answer: with temperature, and cut to its nucleus. KL and entropy H use the plain
    policy and are means over tokens: as sums, their size would depend on the answer's length. The reference of the KL
    is the adapter that the stage starts from, and the KL sums over the whole vocabulary (the Rao-Blackwellised
    estimator, see `policy_terms`).

    The advantage is reward_scale · (reward - baseline), where `missing_eos_penalty` lowers the reward of an answer that
    was cut. The baseline depends on other records' rewards. Under privacy it sees them only as a noised mean, and only
    after the advantages of the step have been computed.
    """

    def __init__(self, *, settings: Reinforce, reward: Scoring, materials: "Materials") -> None:
        from sealed_experts.models.attachment import trainable_parameters
        from sealed_experts.training.scoring import Scorer

        self._settings, self._materials = settings, materials
        self._scorer = Scorer(
            settings=settings,
            reward=reward,
            tokenizer=materials.tokenizer,
            token_budget=materials.token_budget,
            rows=-(-settings.logical_batch // materials.processes),
            check=materials.check,
        )
        self._parameters = trainable_parameters(materials.model)
        # Copied here, before a resumed run loads its own weights.
        self._reference = [parameter.detach().clone() for parameter in self._parameters]
        self._baseline = Baseline(decay=settings.baseline_decay)
        # Figures of the current step, for the log.
        self._rollouts: list[Rollout] = []
        self._divergences: list[float] = []
        self._entropies: list[float] = []

    def check(self, examples: "Sequence[Example]", *, path: Path) -> None:
        """Refuse data without prompts."""
        if not examples:
            raise UserError(f"{path} holds no prompts: reinforce needs records to answer")
        if self._settings.privacy.enabled:
            self._scorer.settle(self._materials.model)

    def prepare(
        self, model: "torch.nn.Module", examples: "Sequence[Example]", *, step: int, stream: "Stream"
    ) -> "list[Example]":
        """Sample an answer to every prompt of the logical batch, and score it."""
        self._forget()
        rollouts = self._scorer.roll_out(model, examples, stream=stream, step=step)
        self._rollouts = [
            dataclasses.replace(rollout, advantage=self._advantage(rollout, step=step)) for rollout in rollouts
        ]
        return list(self._rollouts)

    def made_up(self, rows: "Sequence[Example]", *, vocabulary: int) -> "list[Example]":
        """Return answers with an advantage, each token from a nucleus of another size."""
        from sealed_experts.rewards import Score
        from sealed_experts.training.scoring import Rollout

        return [
            Rollout(
                **vars(row),
                nucleus=tuple(1 + token % min(vocabulary, 256) for token in row.ids[row.prompt_length :]),
                log_probs=(0.0,) * row.response_tokens,
                truncated=True,
                response="",
                score=Score(0.5, {}),
                advantage=1.0,
            )
            for row in rows
        ]

    def constants(self, model: "torch.nn.Module", batch: "Batch") -> Mapping[str, Any]:
        """Return the reference's logits, the advantages, and the nuclei that the answers were sampled from."""
        import torch

        from sealed_experts.training.policy import other_weights
        from sealed_experts.training.response import at_responses, response_logits

        rollouts, device = _rollouts_of(batch), batch.input_ids.device
        with other_weights(self._parameters, self._reference):
            reference = response_logits(model, batch).logits
        constants = {
            "reference": reference,
            "advantages": torch.tensor([rollout.advantage for rollout in rollouts], device=device),
        }
        if self._settings.top_p == 1.0:
            return constants
        sizes = [size for rollout in rollouts for size in rollout.nucleus]
        nuclei = at_responses(batch, torch.tensor(sizes, device=device), elsewhere=1)
        return {**constants, "nuclei": nuclei, "largest_nucleus": max(sizes, default=1)}

    def per_example_loss(
        self, model: "torch.nn.Module", batch: "Batch", constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return each answer's loss, divergence and entropy, [units]."""
        from sealed_experts.training.policy import nucleus_log_probs, policy_terms
        from sealed_experts.training.response import response_logits

        now = response_logits(model, batch)
        log_probs, *of_positions = policy_terms(now.logits, constants["reference"], now.tokens)
        nuclei, temperature = constants.get("nuclei"), self._settings.temperature
        if temperature != 1.0 or nuclei is not None:
            largest = constants.get("largest_nucleus")
            log_probs = nucleus_log_probs(
                now.logits, now.tokens, sizes=nuclei, temperature=temperature, largest=largest
            )
        divergences, entropies = map(now.row_means, of_positions)
        losses = (
            -constants["advantages"] * now.row_sums(log_probs)
            + self._settings.kl_coef * divergences
            - self._settings.entropy_coef * entropies
        )
        return batch.by_unit(losses), {"kl": batch.by_unit(divergences), "entropy": batch.by_unit(entropies)}

    def note(self, figures: "Mapping[str, torch.Tensor]") -> None:
        """Keep divergences and entropies for the log."""
        self._divergences += figures["kl"].tolist()
        self._entropies += figures["entropy"].tolist()

    def validate(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return the loss on held-out records, and the reward, axes, KL and entropy of sampled answers to them."""
        from sealed_experts.training.held_out import answer_held_out
        from sealed_experts.training.policy import other_weights
        from sealed_experts.training.response import mean_response_loss
        from sealed_experts.training.scoring import reward_figures

        prompts = sorted((example for batch in batches for example in batch.examples), key=lambda row: row.unit)
        held_out = answer_held_out(
            model,
            prompts,
            answering=self._scorer.answering,
            seed=self._materials.seed,
            reference=lambda: other_weights(self._parameters, self._reference),
            token_budget=self._materials.token_budget,
            pad_id=self._materials.pad_id,
            check=check,
        )
        figures = reward_figures(self._scorer.scored(held_out.answers))
        return {
            "val_loss": mean_response_loss(model, batches, check=check),
            "val_reward": figures["reward_mean"],
            "val_axes": figures["axes"],
            "val_kl": held_out.kl,
            "val_entropy": held_out.entropy,
            "val_response_tokens": figures["response_tokens"],
            "val_truncated_share": figures["truncated_share"],
        }

    def queries(self, batch: "Batch") -> "dict[str, torch.Tensor]":
        """Return the reward that each answer learns from, float64 [units]."""
        import torch

        rewards = [self._reward(rollout) for rollout in _rollouts_of(batch)]
        return {MEAN_REWARD: torch.tensor(rewards, dtype=torch.float64)}

    def observe(self, answers: Mapping[str, float]) -> None:
        """Update the baseline with the mean reward, if there is one."""
        if MEAN_REWARD in answers:
            self._baseline.update(answers[MEAN_REWARD])

    def observed(self) -> dict[str, Any]:
        """Return this process's answers, with their rewards, divergences and entropies."""
        from sealed_experts.training.scoring import observed

        return {
            "answers": [observed(rollout) for rollout in self._rollouts],
            "kl": self._divergences,
            "entropy": self._entropies,
        }

    def figures(self, shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the step's rewards, KL and entropy, and the updated baseline."""
        from sealed_experts.training.scoring import figures_of_observed

        answers, divergences, entropies = (
            [value for share in shares for value in share[name]] for name in ("answers", "kl", "entropy")
        )
        return {
            **figures_of_observed(answers),
            "kl": sum(divergences) / len(divergences) if divergences else None,
            "entropy": sum(entropies) / len(entropies) if entropies else None,
            "baseline": self._baseline.value,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the baseline's state."""
        return {"baseline": self._baseline.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the baseline's state."""
        self._baseline.load_state_dict(state["baseline"])

    def _advantage(self, rollout: "Rollout", *, step: int) -> float:
        if step == 0:
            # Step 0 is the self-check. If the reward equalled the baseline by chance, it would check nothing.
            return self._settings.reward_scale
        return self._settings.reward_scale * (self._reward(rollout) - self._baseline.value)

    def _reward(self, rollout: "Rollout") -> float:
        """Return an answer's reward, from 0 to 1, less the penalty if the answer was cut."""
        penalty = self._settings.missing_eos_penalty if rollout.truncated else 0.0
        return max(0.0, rollout.score.value - penalty)

    def _forget(self) -> None:
        self._rollouts, self._divergences, self._entropies = [], [], []


def _rollouts_of(batch: "Batch") -> "list[Rollout]":
    from sealed_experts.training.scoring import Rollout

    rollouts = [example for example in batch.examples if isinstance(example, Rollout)]
    assert len(rollouts) == len(batch.examples), "`prepare` must make the batch"
    return rollouts
