"""The metrics of all experts and stages in tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sealed_experts.evaluation.pages import page, table
from sealed_experts.evaluation.rows import UNKNOWN, number

_STOPPED = {
    "max_steps": "all steps done",
    "privacy_budget": "privacy budget spent",
    "early_stopping": "validation got no better",
}

Metrics = Mapping[str, Any]
Column = tuple[str, str, Callable[[Metrics], str]]

_WHOSE: tuple[Column, ...] = (
    ("Expert", "", lambda metrics: metrics["adapter_name"]),
    ("Stage", "", lambda metrics: metrics["stage"]),
)
_TRAINED: tuple[Column, ...] = (
    *_WHOSE,
    ("Validation loss, start", "nats per token", lambda metrics: number(metrics["first_val_loss"], ".3f")),
    ("Validation loss, end", "nats per token", lambda metrics: number(metrics["final_val_loss"], ".3f")),
    ("Training loss, end", "nats per token", lambda metrics: number(_training_loss(metrics), ".3f")),
    ("Steps", "", lambda metrics: number(metrics["total_steps"], ",d")),
    ("Stopped because", "", lambda metrics: str(_STOPPED.get(metrics["stopped_reason"], metrics["stopped_reason"]))),
    ("Examples seen", "", lambda metrics: number(metrics["examples_seen"], ",d")),
    ("Tokens seen", "", lambda metrics: number(metrics["tokens_seen"], ",d")),
    ("Time", "seconds", lambda metrics: number(metrics["total_time_seconds"], ",.1f")),
)
_REWARDED: tuple[Column, ...] = (
    *_WHOSE,
    ("Reward", "name", lambda metrics: metrics["reward"]),
    ("Mean reward, start", "0 to 1", lambda metrics: number(metrics["mean_reward_before"], ".3f")),
    ("Mean reward, end", "0 to 1", lambda metrics: number(metrics["mean_reward_after"], ".3f")),
    ("KL, end", "nats per token", lambda metrics: number(metrics["kl_after"], ".3f")),
    ("Entropy, start", "nats per token", lambda metrics: number(metrics["entropy_before"], ".3f")),
    ("Entropy, end", "nats per token", lambda metrics: number(metrics["entropy_after"], ".3f")),
    ("Answer length, start", "tokens", lambda metrics: number(metrics["response_tokens_before"], ".1f")),
    ("Answer length, end", "tokens", lambda metrics: number(metrics["response_tokens_after"], ".1f")),
    ("Cut answers, end", "", lambda metrics: number(metrics["truncated_share_after"], ".0%")),
)
_PRIVACY: tuple[Column, ...] = (
    *_WHOSE,
    ("ε spent", "all stages so far", lambda metrics: number(metrics["privacy"]["epsilon"], ".2f")),
    ("ε budget", "", lambda metrics: number(metrics["privacy"].get("target_epsilon"), ".2f")),
    ("δ", "", lambda metrics: number(metrics["privacy"].get("delta"), ".0e")),
    ("Noise multiplier", "", lambda metrics: number(metrics["privacy"].get("noise_multiplier"), ".3g")),
    ("Clipping norm", "", lambda metrics: number(metrics["privacy"].get("max_grad_norm"), ".3g")),
    ("Sampling rate", "", lambda metrics: number(metrics["privacy"].get("sample_rate"), ".3%")),
    ("Why no ε", "", lambda metrics: metrics["privacy"].get("reason") or UNKNOWN),
)

_TEXT = ("Expert", "Stage", "Reward", "Stopped because", "Why no ε")


def metrics_page(metrics: Sequence[Metrics]) -> str:
    """Return an HTML page with tables of training, rewards and privacy.

    Each has one row per given training_metrics.json or rl_metrics.json; the table of rewards only for the latter.
    """
    rewarded = [one for one in metrics if _has_reward(one)]
    rewards = ["<h2>Rewards, on held-out prompts</h2>", _table(_REWARDED, rewarded)] if rewarded else []
    body = [
        *("<h2>Training</h2>", _table(_TRAINED, metrics)),
        *rewards,
        *("<h2>Privacy</h2>", _table(_PRIVACY, metrics)),
    ]
    return page("Metrics", body)


def _table(columns: Sequence[Column], metrics: Sequence[Metrics]) -> str:
    return table(
        [(title, unit) for title, unit, _ in columns],
        [[text(one) for _, _, text in columns] for one in metrics],
        text=[index for index, (title, _, _) in enumerate(columns) if title in _TEXT],
    )


def _has_reward(metrics: Metrics) -> bool:
    return "mean_reward_before" in metrics


def _training_loss(metrics: Metrics) -> float | None:
    """Return the last training loss, or None for policy gradients: their loss is not in nats per token."""
    return None if _has_reward(metrics) else metrics["final_loss"]
