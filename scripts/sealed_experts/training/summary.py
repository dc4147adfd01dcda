"""A stage's figures, derived from its adapter file."""

from typing import Any


def training_metrics(state: dict[str, Any]) -> dict[str, Any]:
    """Return the content of training_metrics.json.

    Losses are means over response tokens in nats, times in seconds. They are functions of private records, as
    everything in results/ is.
    """
    train = [line for line in state["history"] if "loss" in line]
    validation = [line for line in state["history"] if "val_loss" in line]
    val_losses = [line["val_loss"] for line in validation if line["val_loss"] is not None]
    known = [line["loss"] for line in train if line["loss"] is not None]
    return {
        **state["subject"],
        "total_steps": state["step"],
        "stopped_reason": state["stopped_reason"],
        "first_val_loss": val_losses[0] if val_losses else None,
        "final_val_loss": val_losses[-1] if val_losses else None,
        "best_val_loss": min(val_losses) if val_losses else None,
        "final_loss": known[-1] if known else None,
        "total_time_seconds": state["seconds"],
        "examples_seen": state["examples_seen"],
        "tokens_seen": state["tokens_seen"],
        "weight_change": state["weight_change"],
        "environment": state["environment"],
        "privacy": state["privacy"],
        "history": {"train": train, "validation": validation},
    }


def reward_metrics(state: dict[str, Any]) -> dict[str, Any]:
    """Return the content of rl_metrics.json: `training_metrics`, and rewards on held-out prompts before and after.

    Both were sampled with the same seed. KL and entropy are in nats a token, lengths in tokens.
    """
    metrics = training_metrics(state)
    validation = metrics["history"]["validation"]
    before, after = validation[0], validation[-1]
    return {
        **metrics,
        "reward": state["settings"]["training"]["reward"],
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
