"""The curves of one training stage: its losses, and the ε it spent against its budget."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import atomic_writer

# Okabe and Ito's palette: told apart with every common form of colour blindness.
_TRAIN, _VALIDATION, _EPSILON = "#0072B2", "#D55E00", "#009E73"
_EPSILON_TEXT, _BUDGET, _QUIET = "#00664A", "#000000", "#666666"
_SMOOTHING_SPAN = 0.05  # of all points, on each side
_SMOOTHED_FROM = 40  # points; fewer are read well enough as they are
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FORMATS = ("svg", "png")


def draw_curves(metrics: Mapping[str, Any]) -> Figure:
    """Return a figure of losses and ε from the content of a training_metrics.json.

    Raises:
        UserError: the metrics carry no history of training losses.
    """
    name = metrics["adapter_name"]
    history = metrics.get("history", {"train": []})
    train = _points(history["train"], "loss")
    if not train:
        raise UserError(f"the metrics of {name} hold no training losses: train it again with this version")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=(9.4, 3.8), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    losses, budget = figure.subplots(1, 2)
    figure.suptitle(str(name), fontsize=13, fontweight="bold", x=0.015, horizontalalignment="left")
    _draw_losses(losses, train, _points(history["validation"], "val_loss"))
    _draw_budget(budget, _points(history["train"], "epsilon"), metrics["privacy"])
    for axes in (losses, budget):
        axes.set_xlim(0, metrics["total_steps"])
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as SVG or PNG, as the path's ending says; the same figure gives the same bytes.

    Raises:
        UserError: the path has another ending.
    """
    form = os.fspath(path).rpartition(".")[2].lower()
    if form not in _FORMATS:
        raise UserError(f"cannot draw {os.fspath(path)}: its name must end in {' or '.join(_FORMATS)}")
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "sealed-experts"}), atomic_writer(path) as stream:
        figure.savefig(stream, format=form, metadata=metadata, facecolor="white")


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points with the mean of each and its neighbours, 5 % of all points on either side.

    Points too near an end to have all neighbours are left out: a shorter or lopsided window would bend the ends.
    """
    reach = max(1, round(len(points) * _SMOOTHING_SPAN))
    values = [value for _, value in points]
    return [
        (points[index][0], math.fsum(values[index - reach : index + reach + 1]) / (2 * reach + 1))
        for index in range(reach, len(points) - reach)
    ]


def _draw_losses(axes: Axes, train: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> None:
    _dress(axes, title="Loss", ylabel="Loss (nats per response token)")
    if len(train) < _SMOOTHED_FROM:
        axes.plot(*_columns(train), color=_TRAIN, linewidth=1.8, label="training")
    else:
        axes.plot(*_columns(train), color=_TRAIN, linewidth=0.8, alpha=0.3, label="training")
        axes.plot(*_columns(smoothed(train)), color=_TRAIN, linewidth=1.8, label="training, moving mean")
    if validation:
        (line,) = axes.plot(*_columns(validation), color=_VALIDATION, linewidth=1.8, marker="o", label="validation")
        line.set(markersize=4, clip_on=False)
    axes.legend(frameon=False, fontsize=9)


def _draw_budget(axes: Axes, spent: Sequence[tuple[int, float]], privacy: Mapping[str, Any]) -> None:
    if not spent:
        _say_no_claim(axes, str(privacy.get("reason") or "none was recorded"))
        return
    _dress(axes, title="Privacy spent", ylabel=f"ε at δ = {_power(privacy['delta'])}")
    steps, values = _columns(spent)
    budget = privacy["target_epsilon"]
    top = 1.15 * max(budget, *values)
    axes.set_ylim(0, top)
    axes.plot(steps, values, color=_EPSILON, linewidth=1.8)
    axes.fill_between(steps, values, color=_EPSILON, alpha=0.12, linewidth=0)
    axes.axhline(budget, color=_BUDGET, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(f"budget {budget:g}", (0, budget), (6, 4), textcoords="offset points", fontsize=9)
    # Under the curve's end, unless that would fall on the axis.
    below = values[-1] > top / 4
    axes.annotate(
        f"spent {values[-1]:.2f}",
        (steps[-1], values[-1]),
        (-6, -8 if below else 6),
        textcoords="offset points",
        horizontalalignment="right",
        verticalalignment="top" if below else "bottom",
        fontsize=9,
        color=_EPSILON_TEXT,
    )


def _say_no_claim(axes: Axes, reason: str) -> None:
    axes.set_title("Privacy spent", loc="left", fontsize=11)
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_color("#dddddd")
    text = "No ε is claimed\n\n" + textwrap.fill(reason, width=44)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_QUIET, fontsize=9)


def _dress(axes: Axes, *, title: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs that have a value: an empty draw has no loss, a run without a claim no ε."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _power(value: float) -> str:
    """Return a small number as people write it: 1e-05 as 10⁻⁵."""
    factor, _, exponent = f"{value:.2e}".partition("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if float(factor) == 1 else f"{float(factor):g} × {power}"
