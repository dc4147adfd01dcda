"""A page with the evaluations of all experts: before and after, the parts of the reward, and answers side by side."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.evaluation.gains import rewarded_gain, verdict
from sealed_experts.evaluation.pages import page, table
from sealed_experts.evaluation.palette import axis_color
from sealed_experts.evaluation.rows import (
    UNKNOWN,
    AxisShare,
    Evaluation,
    axis_shares,
    figure_rows,
    model_names,
    number,
    shown_gain,
    signed_interval,
)
from sealed_experts.text import visible

_SHOWN = 0.0005  # the shown digits hide a smaller penalty

_STYLE = """
.counts { color: #00664A; font-weight: bold; }
.not { color: #A84300; font-weight: bold; }
.bars { display: grid; grid-template-columns: max-content minmax(16rem, 40rem) max-content; gap: .3rem 1rem;
  align-items: center; margin: .8rem 0; }
.bar { display: flex; height: 1.4rem; background: #eee; }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .35rem 0 .8rem; vertical-align: -.05rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.answers > div { border: 1px solid #ddd; padding: .6rem .8rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; }
.prompt { white-space: pre-wrap; font-weight: bold; margin: 1.2rem 0 .5rem; max-width: 60rem; }
"""


def evaluation_page(evaluations: Sequence[Evaluation]) -> str:
    """Return an HTML page of the evaluations: a table of all experts, and a section for each."""
    body = ["<h2>All experts</h2>", _overview(evaluations), *(_section(one) for one in evaluations)]
    return page("Before and after", body, style=_STYLE)


def _overview(evaluations: Sequence[Evaluation]) -> str:
    others = _compared(evaluations)
    heads = [
        *(("Expert", ""), ("The gain in reward", ""), ("Gain in reward", "with its 95 % interval")),
        *((f"Reward, {when}", "mean, 0 to 1") for when in ("before", "after")),
        *((f"{title}, {when}", unit) for title, unit in others.values() for when in ("base", "last stage")),
    ]
    return table(heads, [_overview_row(one, list(others)) for one in evaluations], text=(0, 1))


def _compared(evaluations: Sequence[Evaluation]) -> dict[str, tuple[str, str]]:
    """Return {metric: (title, unit)} of metrics with gains, without parts and the reward, which has its own columns."""
    return {
        about["metric"]: (about["title"], about["unit"])
        for one in evaluations
        for about in one["metrics"]
        if about["metric"] != "reward" and "." not in about["metric"]
        if any(about["metric"] in gain["metrics"] for gain in one["gains"])
    }


def _overview_row(evaluation: Evaluation, others: Sequence[str]) -> list[str]:
    names = model_names(evaluation)
    cells = [_mean(evaluation, model, metric) for metric in others for model in (names[0], names[-1])]
    gain, judged = rewarded_gain(evaluation), verdict(evaluation)
    if gain is None or judged is None:
        return [evaluation["expert"], "no reward was measured", *[UNKNOWN] * 3, *cells]
    rewards = [_mean(evaluation, gain[end], "reward") for end in ("from", "to")]
    change = signed_interval(gain["metrics"]["reward"])
    return [evaluation["expert"], judged.partition(":")[0], change, *rewards, *cells]


def _mean(evaluation: Evaluation, model: str, metric: str) -> str:
    return number(evaluation["models"][model]["metrics"].get(metric, {}).get("mean"), ".3f")


def _section(evaluation: Evaluation) -> str:
    names, records = model_names(evaluation), evaluation["records"]
    gain = shown_gain(evaluation)
    change = [(f"Change, {gain['from']} → {gain['to']}", "over the same records")] if gain else []
    heads = [("", ""), *((name, "") for name in names), *change]
    rows = [
        [f"{row.label} ({row.unit})" if row.unit else row.label, *row.cells, *([row.change] if gain else [])]
        for row in figure_rows(evaluation)
    ]
    return "\n".join(
        [
            f"<h2>{html.escape(evaluation['expert'])}</h2>",
            _judgement(evaluation),
            table(heads, rows, text=(0,)),
            f"<p>Measured on {records['held_out']:,d} held-out records of {html.escape(evaluation['dataset'])}. "
            "In brackets: 95 % intervals.</p>",
            *_reward_parts(evaluation, names),
            *(_sample(sample, evaluation) for sample in evaluation["samples"]),
        ]
    )


def _judgement(evaluation: Evaluation) -> str:
    gain, judged = rewarded_gain(evaluation), verdict(evaluation)
    if gain is None or judged is None:
        return "<p>No reward was measured.</p>"
    change = signed_interval(gain["metrics"]["reward"])
    mark = f'<span class="{"counts" if judged == "counts" else "not"}">{html.escape(judged)}</span>'
    text = f"The gain in reward from {gain['from']} to {gain['to']}, {change}, "
    return f"<p>{html.escape(text)}{mark}.</p>"


def _reward_parts(evaluation: Evaluation, names: Sequence[str]) -> list[str]:
    """Return how much each axis contributes to each model's reward. A gain from a single axis is suspect."""
    shares = {name: axis_shares(evaluation, name) for name in names}
    axes = list(shares[names[0]])
    if not axes:
        return []
    rows = [
        [f"{axis} (weight {evaluation['reward']['weights'][axis]:g})", *(_part(shares[name][axis]) for name in names)]
        for axis in axes
    ]
    heads = [("Axis", ""), *((name, "points of reward, and their share") for name in names)]
    # As in the stage's figure: an axis' place among all axes decides, also among those for information.
    known = (about["metric"].partition("reward.")[2] for about in evaluation["metrics"])
    colors = {axis: axis_color(index) for index, axis in enumerate(sorted(filter(None, known)))}
    bars = "\n".join(_bar(name, evaluation["models"][name], shares[name], colors) for name in names)
    keys = "".join(f'<span class="key" style="background:{colors[axis]}"></span>{html.escape(axis)}' for axis in axes)
    return [
        "<h3>What the reward is made of</h3>",
        f'<div class="bars">\n{bars}\n</div>\n<p>{keys}</p>',
        table(heads, rows, text=(0,)),
    ]


def _part(share: AxisShare) -> str:
    return f"{share.points:.3f} ({share.share:.0%})"


def _bar(name: str, model: Mapping[str, Any], shares: Mapping[str, AxisShare], colors: Mapping[str, str]) -> str:
    pieces = "".join(
        f'<span style="width:{100 * share.points:.2f}%;background:{colors[axis]}"'
        f' title="{html.escape(axis)}: {_part(share)}"></span>'
        for axis, share in shares.items()
    )
    total, reward = sum(share.points for share in shares.values()), model["metrics"]["reward"]["mean"]
    lost = f", {total - reward:.3f} less than its axes" if total - reward > _SHOWN else ""
    return f'<span>{html.escape(name)}</span><span class="bar">{pieces}</span><span>{reward:.3f}{lost}</span>'


def _sample(sample: Mapping[str, Any], evaluation: Evaluation) -> str:
    titles = {about["metric"]: about["title"] for about in evaluation["metrics"]}
    answers = {"reference": sample["reference"]} | {name: sample["answers"][name] for name in model_names(evaluation)}
    cards = "\n".join(_card(name, answer, titles) for name, answer in answers.items())
    prompt = html.escape(visible(sample["prompt"]))
    return f'<div class="prompt">{prompt}</div>\n<div class="answers">\n{cards}\n</div>'


def _card(name: str, answer: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    scores = ", ".join(
        f"{titles.get(metric, metric)} {number(value, '.2f')}" for metric, value in answer["scores"].items()
    )
    cut = " … (cut)" if answer.get("truncated") else ""
    return (
        f"<div><strong>{html.escape(name)}</strong>"
        f'<div class="said">{html.escape(visible(answer["text"]) + cut)}</div>'
        f'<span class="unit">{html.escape(scores)}</span></div>'
    )
