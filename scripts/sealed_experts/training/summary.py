"""The metrics of a stage, derived from its adapter file."""

from typing import Any

from sealed_experts.training.objectives import stage_of


def stage_metrics(state: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a stage's metrics file: the figures that every stage has, and those of this stage.

    Losses are means over response tokens in nats; times are in seconds. All are functions of private records, like
    everything in results/. `kept` is the validation whose weights the adapter file holds; None means the last step's
    weights. The final validation loss belongs to the kept weights. `records` counts for each side the records that were
    used, cut and dropped (`long_rows`).
    """
    train = [line for line in state["history"] if "loss" in line]
    validation = [line for line in state["history"] if "val_loss" in line]
    val_losses = [line["val_loss"] for line in validation if line["val_loss"] is not None]
    final = state["kept"] or (validation[-1] if validation else {})
    known = [line["loss"] for line in train if line["loss"] is not None]
    return {
        **state["subject"],
        "total_steps": state["step"],
        "stopped_reason": state["stopped_reason"],
        "first_val_loss": val_losses[0] if val_losses else None,
        "final_val_loss": final.get("val_loss"),
        "best_val_loss": min(val_losses) if val_losses else None,
        "kept": state["kept"],
        "final_loss": known[-1] if known else None,
        "total_time_seconds": state["seconds"],
        "examples_seen": state["examples_seen"],
        "tokens_seen": state["tokens_seen"],
        "weight_change": state["weight_change"],
        "records": state["records"],
        "environment": state["environment"],
        "privacy": state["privacy"],
        "history": {"train": train, "validation": validation},
        **stage_of(state).summary(state),
    }
