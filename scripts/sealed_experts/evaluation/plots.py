"""The curves of one training stage: its losses, and the ε it spent against its budget."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from sealed_experts.errors import UserError
from sealed_experts.evaluation.drawing import (
    draw_budget,
    draw_held_out,
    draw_training,
    dress,
    new_figure,
    points_of,
)
from sealed_experts.evaluation.palette import HELD_OUT


def draw_curves(metrics: Mapping[str, Any]) -> Figure:
    """Return a figure of losses and ε from the content of a training_metrics.json.

    Raises:
        UserError: the metrics hold no history of training losses.
    """
    name = metrics["adapter_name"]
    history = metrics.get("history", {"train": []})
    train = points_of(history["train"], "loss")
    if not train:
        raise UserError(f"the metrics of {name} hold no training losses: train it again with this version")
    figure = new_figure(str(name), height=3.8)
    losses, budget = figure.subplots(1, 2)
    dress(losses, title="Loss", ylabel="Loss (nats per response token)")
    draw_training(losses, train, label="training")
    draw_held_out(losses, points_of(history["validation"], "val_loss"), label="validation", color=HELD_OUT)
    losses.legend(frameon=False, fontsize=9)
    draw_budget(budget, points_of(history["train"], "epsilon"), privacy=metrics["privacy"])
    for axes in (losses, budget):
        axes.set_xlim(0, metrics["total_steps"])
    return figure
