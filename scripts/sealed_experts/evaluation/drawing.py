"""The look of all figures in the report, and how they are written."""

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
from sealed_experts.evaluation.palette import SPENT, SPENT_TEXT, TRAINING
from sealed_experts.files.atomic import atomic_writer

QUIET = "#666666"
_BUDGET = "#000000"
_GRID = "#dddddd"
_SMOOTHING_SPAN = 0.05  # of all points, on each side
_SMOOTHED_FROM = 40  # points; fewer need no mean
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FORMATS = ("svg", "png")

Points = Sequence[tuple[int, float]]


def new_figure(title: str, *, height: float) -> Figure:
    """Return an empty figure of the report's width, `height` in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04, hspace=0.05)
    figure = Figure(figsize=(9.4, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.015, horizontalalignment="left")
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as SVG or PNG, by the path's ending. The same figure gives the same bytes.

    Raises:
        UserError: the path has another ending.
    """
    form = os.fspath(path).rpartition(".")[2].lower()
    if form not in _FORMATS:
        raise UserError(f"cannot draw {os.fspath(path)}: its name must end in {' or '.join(_FORMATS)}")
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "sealed-experts"}), atomic_writer(path) as stream:
        figure.savefig(stream, format=form, metadata=metadata, facecolor="white")


def smoothed(points: Points) -> list[tuple[int, float]]:
    """Return the points with the mean of each and its neighbours, 5 % of all points on either side.

    Points near an end, without all neighbours, are left out: a smaller window would bend the curve's ends.
    """
    reach = max(1, round(len(points) * _SMOOTHING_SPAN))
    values = [value for _, value in points]
    return [
        (points[index][0], math.fsum(values[index - reach : index + reach + 1]) / (2 * reach + 1))
        for index in range(reach, len(points) - reach)
    ]


def points_of(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs with a value. An empty draw has no loss; a run without a claim has no ε."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def columns(points: Points) -> tuple[list[int], list[float]]:
    """Return steps and values."""
    return [step for step, _ in points], [value for _, value in points]


def dress(axes: Axes, *, title: str, ylabel: str) -> None:
    """Give a panel its title, labels and grid."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_training(axes: Axes, points: Points, *, label: str, color: str = TRAINING) -> None:
    """Draw each step's value. Many points are drawn pale, with their moving mean."""
    if len(points) < _SMOOTHED_FROM:
        axes.plot(*columns(points), color=color, linewidth=1.8, label=label)
    else:
        axes.plot(*columns(points), color=color, linewidth=0.8, alpha=0.3, label=label)
        axes.plot(*columns(smoothed(points)), color=color, linewidth=1.8, label=f"{label}, moving mean")


def draw_held_out(axes: Axes, points: Points, *, label: str, color: str) -> None:
    """Draw each measurement on held-out records as a dot."""
    if points:
        (line,) = axes.plot(*columns(points), color=color, linewidth=1.8, marker="o", label=label)
        line.set(markersize=4, clip_on=False, zorder=3)


def draw_budget(axes: Axes, spent: Points, *, privacy: Mapping[str, Any]) -> None:
    """Draw ε against its budget, or the reason why none is claimed."""
    if not spent:
        _say_no_claim(axes, str(privacy.get("reason") or "none was recorded"))
        return
    dress(axes, title="Privacy spent", ylabel=f"ε at δ = {power(privacy['delta'])}")
    steps, values = columns(spent)
    budget = privacy["target_epsilon"]
    top = 1.2 * max(budget, *values)
    axes.set_ylim(0, top)
    axes.plot(steps, values, color=SPENT, linewidth=1.8)
    axes.fill_between(steps, values, color=SPENT, alpha=0.12, linewidth=0)
    axes.axhline(budget, color=_BUDGET, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(f"budget {budget:g}", (0, budget), (6, 4), textcoords="offset points", fontsize=9)
    # Put it in the corner under the curve, or above the curve's end if there is no room.
    high = values[-1] > top / 4
    axes.annotate(
        f"spent {values[-1]:.2f}",
        (1, 0) if high else (1, values[-1] / top),
        (-6, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        horizontalalignment="right",
        fontsize=9,
        color=SPENT_TEXT,
    )


def _say_no_claim(axes: Axes, reason: str) -> None:
    axes.set_title("Privacy spent", loc="left", fontsize=11)
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    text = "No ε is claimed\n\n" + textwrap.fill(reason, width=44)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=9)


def power(value: float) -> str:
    """Return a small number as a power of ten: 1e-05 as 10⁻⁵."""
    factor, _, exponent = f"{value:.2e}".partition("e")
    text = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return text if float(factor) == 1 else f"{float(factor):g} × {text}"
