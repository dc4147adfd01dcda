"""The curves of a stage that learns from a reward: the reward, its axes, and their cost."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealed_experts.errors import UserError
from sealed_experts.evaluation.drawing import (
    QUIET,
    draw_budget,
    draw_held_out,
    draw_training,
    dress,
    new_figure,
    points_of,
)
from sealed_experts.evaluation.gains import MOST_KL
from sealed_experts.evaluation.palette import HELD_OUT, axis_color

_NAMES_A_ROW = 4
_TITLE_BESIDE_LEGEND = 28  # letters that fit

Metrics = Mapping[str, Any]


def draw_reward_curves(metrics: Metrics, *, earlier: Sequence[Metrics]) -> Figure:
    """Return a figure of rewards, their axes, KL, entropy, answers' lengths and ε.

    Args:
        metrics: content of a rl_metrics.json.
        earlier: metrics of the stages before it, in order: ε counts all stages together.

    Raises:
        UserError: the metrics hold no history of rewards.
    """
    name = metrics["adapter_name"]
    history = metrics.get("history", {"train": [], "validation": []})
    train, validation = history["train"], history["validation"]
    if not points_of(train, "reward_mean"):
        raise UserError(f"the metrics of {name} hold no rewards: train its stage `reinforce` again with this version")
    figure = new_figure(str(name), height=10.4)
    (rewards, axes), (divergence, entropy), (lengths, budget) = figure.subplots(3, 2)
    _draw_rewards(rewards, train, validation)
    _draw_axes(axes, validation, metrics)
    _draw_divergence(divergence, train, validation)
    _draw_pair(entropy, train, validation, "entropy", title="Entropy", ylabel="Entropy (nats per token)")
    _draw_lengths(lengths, train, validation)
    for panel in (rewards, axes, divergence, entropy, lengths):
        panel.set_xlim(0, metrics["total_steps"])
    _draw_joint_budget(budget, [*earlier, metrics])
    # One legend for all panels that show both: inside a panel it would cover the curves.
    lines, labels = rewards.get_legend_handles_labels()
    beside = len(str(name)) <= _TITLE_BESIDE_LEGEND
    place: Literal["outside upper right", "outside lower right"] = (
        "outside upper right" if beside else "outside lower right"
    )
    figure.legend(lines, labels, loc=place, ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_rewards(axes: Axes, train: Sequence[Metrics], validation: Sequence[Metrics]) -> None:
    dress(axes, title="Reward", ylabel="Mean reward")
    draw_training(axes, points_of(train, "reward_mean"), label="training prompts")
    draw_held_out(axes, points_of(validation, "val_reward"), label="held-out prompts", color=HELD_OUT)


def _draw_axes(axes: Axes, validation: Sequence[Metrics], metrics: Metrics) -> None:
    """Draw each axis on held-out prompts. An axis that falls while the reward rises is the price of the gain."""
    dress(axes, title="Axes of the reward, on held-out prompts", ylabel="Mean score")
    names = sorted(metrics["axes_after"])
    for index, name in enumerate(names):
        points = [(line["step"], line["val_axes"][name]) for line in validation if name in line["val_axes"]]
        draw_held_out(axes, points, label=name, color=axis_color(index))
    axes.set_ylim(-0.02, 1.02)
    if names:
        _name_axes(axes, rows=-(-len(names) // _NAMES_A_ROW))


def _draw_divergence(axes: Axes, train: Sequence[Metrics], validation: Sequence[Metrics]) -> None:
    _draw_pair(axes, train, validation, "kl", title="KL from the start of the stage", ylabel="KL (nats per token)")
    shown = [value for name, lines in (("kl", train), ("val_kl", validation)) for _, value in points_of(lines, name)]
    top = 1.1 * max([*shown, 1e-6])
    axes.set_ylim(0, top)
    if top > MOST_KL:
        axes.axhline(MOST_KL, color="#000000", linewidth=1.2, linestyle=(0, (5, 3)))
        note = f"above {MOST_KL:g}, no gain counts"
        axes.annotate(note, (0, MOST_KL), (6, 4), textcoords="offset points", fontsize=9)


def _draw_pair(
    axes: Axes, train: Sequence[Metrics], validation: Sequence[Metrics], name: str, *, title: str, ylabel: str
) -> None:
    dress(axes, title=title, ylabel=ylabel)
    draw_training(axes, points_of(train, name), label="training prompts")
    draw_held_out(axes, points_of(validation, f"val_{name}"), label="held-out prompts", color=HELD_OUT)


def _draw_lengths(axes: Axes, train: Sequence[Metrics], validation: Sequence[Metrics]) -> None:
    _draw_pair(axes, train, validation, "response_tokens", title="Length of answers", ylabel="Tokens")
    axes.set_ylim(bottom=0)
    shares = [share for _, share in points_of(validation, "val_truncated_share")]
    if shares:
        text = f"cut at the longest length (held-out): {shares[0]:.0%} → {shares[-1]:.0%}"
        axes.text(0.02, 0.03, text, transform=axes.transAxes, fontsize=9, color=QUIET)


def _draw_joint_budget(axes: Axes, stages: Sequence[Metrics]) -> None:
    """Draw ε over the steps of all stages: they use the same records, so they spend one budget."""
    last = stages[-1]["privacy"]
    spent: list[tuple[int, float]] = []
    starts, start = [], 0
    for stage in stages:
        starts.append(start)
        spent += [(start + step, value) for step, value in points_of(stage["history"]["train"], "epsilon")]
        start += stage["total_steps"]
    if last["epsilon"] is None:
        spent = []
    draw_budget(axes, spent, privacy=last)
    if spent:
        axes.set_xlabel("Optimizer step, all stages")
        axes.set_xlim(0, start)
        _mark_changes(axes, starts, [stage["stage"] for stage in stages], end=start)


def _mark_changes(axes: Axes, starts: Sequence[int], names: Sequence[str], *, end: int) -> None:
    """Mark where a stage begins, and write the stage's name on the side with more room."""
    for start, (before, after) in zip(starts[1:], itertools.pairwise(names), strict=True):
        axes.axvline(start, color=QUIET, linewidth=1.0, linestyle=(0, (1, 2)))
        right = start < end / 2
        axes.annotate(
            f"{after} →" if right else f"← {before}",
            (start, 0.99),
            (5 if right else -5, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            horizontalalignment="left" if right else "right",
            verticalalignment="top",
            fontsize=9,
            color=QUIET,
        )


def _name_axes(axes: Axes, *, rows: int) -> None:
    """Put the names of a reward's axes between the panel and its title."""
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, pad=8 + 14 * rows)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=_NAMES_A_ROW,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1.0,
    )
