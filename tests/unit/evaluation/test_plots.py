"""The report's curves and table, on made-up histories."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sealed_experts.errors import UserError
from sealed_experts.evaluation.drawing import save_figure, smoothed
from sealed_experts.evaluation.plots import draw_curves
from sealed_experts.evaluation.reward_plots import draw_reward_curves
from sealed_experts.evaluation.tables import metrics_page

SCRIPTS = Path(__file__).parents[3] / "scripts"


def made_metrics(
    *, steps: int = 60, every: int = 5, claim: bool = True, name: str = "banking_expert"
) -> dict[str, Any]:
    train = [
        {"step": step, "loss": 3.0 - step / steps, "epsilon": 4.2 * step / steps if claim else None}
        for step in range(every, steps + 1, every)
    ]
    return {
        "adapter_name": name,
        "stage": "sft",
        "total_steps": steps,
        "stopped_reason": "max_steps",
        "first_val_loss": 3.1,
        "final_val_loss": 2.25,
        "final_loss": 2.0,
        "examples_seen": 7680,
        "tokens_seen": 987654,
        "total_time_seconds": 43.21,
        "privacy": {
            "enabled": True,
            "epsilon": 4.2 if claim else None,
            "reason": None if claim else "reproducible mode: whoever knows the seed knows the noise",
            "target_epsilon": 8.0,
            "delta": 1e-5,
            "noise_multiplier": 1.0,
            "max_grad_norm": 0.3,
            "sample_rate": 0.064,
        },
        "history": {
            "train": train,
            "validation": [{"step": step, "val_loss": 3.1 - step / steps} for step in range(0, steps + 1, 20)],
        },
    }


AXES = ("format", "safety")


def made_rewards(
    *, steps: int = 50, claim: bool = True, kl: float = 0.2, name: str = "banking_expert"
) -> dict[str, Any]:
    """Return metrics of a reinforce stage after `made_metrics`: the reward rises by 0.2, its safety falls."""
    share = [step / steps for step in range(steps + 1)]
    train = [
        {
            **{"step": step, "loss": -1.0, "epsilon": 4.2 + 2.0 * share[step] if claim else None},
            **{"reward_mean": 0.5 + 0.2 * share[step], "kl": kl * share[step], "entropy": 2.0, "response_tokens": 30.0},
        }
        for step in range(1, steps + 1)
    ]
    validation = [
        {
            **{"step": step, "val_loss": 2.2, "val_reward": 0.48 + 0.2 * share[step], "val_kl": kl * share[step]},
            **{"val_axes": {"format": 0.5 + 0.4 * share[step], "safety": 0.9 - 0.3 * share[step]}},
            **{"val_entropy": 2.1, "val_response_tokens": 31.0, "val_truncated_share": 0.8 - 0.5 * share[step]},
        }
        for step in range(0, steps + 1, 10)
    ]
    metrics = made_metrics(steps=steps, claim=claim, name=name)
    metrics["privacy"]["epsilon"] = 6.2 if claim else None
    return metrics | {
        **{"stage": "reinforce", "history": {"train": train, "validation": validation}, "reward": "finance"},
        **{"mean_reward_before": 0.48, "mean_reward_after": 0.68, "axes_after": {"format": 0.9, "safety": 0.6}},
        **{"kl_after": kl, "entropy_before": 2.1, "entropy_after": 2.1, "truncated_share_after": 0.3},
        **{"response_tokens_before": 31.0, "response_tokens_after": 31.0},
    }


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_the_curves_hold_the_history() -> None:
    figure = draw_curves(made_metrics())
    losses, budget = figure.axes
    training, validation = losses.lines
    assert list(training.get_xdata()) == list(range(5, 61, 5))
    assert training.get_ydata()[-1] == pytest.approx(2.0)
    assert list(validation.get_xdata()) == [0, 20, 40, 60]
    spent, limit = budget.lines
    assert spent.get_ydata()[-1] == pytest.approx(4.2)
    assert set(limit.get_ydata()) == {8.0}
    assert budget.get_ylabel() == "ε at δ = 10⁻⁵"
    assert budget.get_ylim()[1] > 8.0
    assert "spent 4.20" in texts(figure)


def test_a_step_without_a_loss_is_left_out() -> None:
    metrics = made_metrics()
    metrics["history"]["train"][1]["loss"] = None
    training = draw_curves(metrics).axes[0].lines[0]
    assert 10 not in list(training.get_xdata())


def test_a_long_history_gets_a_moving_mean() -> None:
    losses = draw_curves(made_metrics(steps=200, every=1)).axes[0]
    raw, mean, _ = losses.lines
    assert len(raw.get_xdata()) == 200
    assert len(mean.get_xdata()) == 180


def test_the_moving_mean_agrees_with_a_convolution() -> None:
    values = np.random.default_rng(3).normal(size=100)
    points = smoothed([(step, float(value)) for step, value in enumerate(values)])
    assert [step for step, _ in points] == list(range(5, 95))
    np.testing.assert_allclose([value for _, value in points], np.convolve(values, np.ones(11) / 11, mode="valid"))


def test_without_a_claim_the_reason_stands_in_place_of_the_curve() -> None:
    figure = draw_curves(made_metrics(claim=False))
    assert not figure.axes[1].lines
    assert "No ε is claimed" in texts(figure)
    assert "knows the seed" in " ".join(texts(figure).split())


def test_an_overspent_budget_stays_in_the_picture() -> None:
    metrics = made_metrics()
    metrics["privacy"]["target_epsilon"] = 2.0
    assert draw_curves(metrics).axes[1].get_ylim()[1] > 4.2


def test_a_delta_that_is_no_power_of_ten_is_written_out() -> None:
    metrics = made_metrics()
    metrics["privacy"]["delta"] = 2.5e-6
    assert draw_curves(metrics).axes[1].get_ylabel() == "ε at δ = 2.5 × 10⁻⁶"


def test_the_reward_curves_hold_the_history() -> None:
    figure = draw_reward_curves(made_rewards(), earlier=[made_metrics()])
    pale, smooth, held_out = panels(figure)["Reward"].lines
    assert list(pale.get_xdata()) == list(range(1, 51))
    assert smooth.get_ydata()[0] == pytest.approx(np.mean(pale.get_ydata()[:5]))
    assert list(held_out.get_xdata()) == [0, 10, 20, 30, 40, 50]
    assert held_out.get_ydata()[-1] == pytest.approx(0.68)
    axes = {line.get_label(): line for line in panels(figure)["Axes of the reward, on held-out prompts"].lines}
    assert list(axes) == list(AXES)
    assert axes["safety"].get_ydata()[-1] == pytest.approx(0.6)
    assert panels(figure)["KL from the start of the stage"].lines[-1].get_ydata()[-1] == pytest.approx(0.2)
    assert panels(figure)["Entropy"].lines[-1].get_ydata()[-1] == pytest.approx(2.1)
    assert "80% → 30%" in texts(figure)


def test_epsilon_runs_over_both_stages_against_the_budget() -> None:
    axes = panels(draw_reward_curves(made_rewards(), earlier=[made_metrics()]))["Privacy spent"]
    spent, limit, change = axes.lines
    assert list(spent.get_xdata()) == [*range(5, 61, 5), *range(61, 111)]
    assert spent.get_ydata()[11] == pytest.approx(4.2)
    assert spent.get_ydata()[-1] == pytest.approx(6.2)
    assert set(limit.get_ydata()) == {8.0}
    assert set(change.get_xdata()) == {60}
    assert axes.get_xlim() == (0, 110)
    assert "spent 6.20" in [text.get_text() for text in axes.texts]


def test_the_stage_on_the_roomier_side_is_named() -> None:
    late = draw_reward_curves(made_rewards(steps=20), earlier=[made_metrics()])
    early = draw_reward_curves(made_rewards(steps=200), earlier=[made_metrics()])
    assert "← sft" in texts(late)
    assert "reinforce →" in texts(early)


def test_no_epsilon_is_drawn_where_none_is_claimed() -> None:
    """The first stage's claim does not cover what the second learnt from the same records without one."""
    axes = panels(draw_reward_curves(made_rewards(claim=False), earlier=[made_metrics()]))["Privacy spent"]
    assert not axes.lines
    assert "No ε is claimed" in axes.texts[0].get_text()


def test_the_bound_of_the_divergence_is_drawn_where_it_is_near() -> None:
    near = draw_reward_curves(made_rewards(kl=0.7), earlier=[])
    far = draw_reward_curves(made_rewards(kl=0.1), earlier=[])
    assert set(panels(near)["KL from the start of the stage"].lines[-1].get_ydata()) == {0.5}
    assert "no gain counts" in texts(near)
    assert "no gain counts" not in texts(far)


def test_an_empty_draw_leaves_a_gap_in_the_rewards() -> None:
    metrics = made_rewards()
    for name in ("reward_mean", "kl", "entropy", "response_tokens", "loss"):
        metrics["history"]["train"][6][name] = None
    figure = draw_reward_curves(metrics, earlier=[])
    assert 7 not in list(panels(figure)["Reward"].lines[0].get_xdata())


@pytest.mark.parametrize("name", ["short", "a_name_that_would_run_into_the_legend_if_it_stood_beside_it"])
def test_no_text_of_the_reward_curves_lies_on_another(name: str) -> None:
    figure = draw_reward_curves(made_rewards(name=name, kl=0.7), earlier=[made_metrics()])
    figure.draw_without_rendering()
    boxes = [figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()]  # type: ignore[attr-defined]
    for axes in figure.axes:
        boxes += [text.get_window_extent() for text in axes.texts if text.get_text()]
        boxes.append(axes.title.get_window_extent() if axes.title.get_text() else axes._left_title.get_window_extent())
        boxes += [axes.get_legend().get_window_extent()] if axes.get_legend() else []
        boxes += [axes.xaxis.label.get_window_extent(), axes.yaxis.label.get_window_extent()]
    boxes = [box.padded(-1) for box in boxes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_metrics_without_rewards_are_refused() -> None:
    metrics = made_rewards()
    metrics["history"]["train"] = []
    with pytest.raises(UserError, match="banking_expert hold no rewards"):
        draw_reward_curves(metrics, earlier=[])


def test_metrics_without_history_are_refused() -> None:
    metrics = made_metrics()
    metrics["history"]["train"] = []
    with pytest.raises(UserError, match="banking_expert hold no training losses"):
        draw_curves(metrics)


def test_the_same_metrics_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save_figure(draw_curves(made_metrics()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_png_is_one_too(tmp_path: Path) -> None:
    save_figure(draw_curves(made_metrics()), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must end in svg or png"):
        save_figure(draw_curves(made_metrics()), tmp_path / "curves.gif")


class Rows(HTMLParser):
    """Reads the cells of all body rows, and counts what is open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data


def test_the_table_has_a_row_for_each_stage() -> None:
    page = Rows(metrics_page([made_metrics(), made_metrics(name="second", claim=False)]))
    assert page.open == []
    training, second, privacy, none = [row for row in page.rows if row]
    assert training == [
        *("banking_expert", "sft", "3.100", "2.250", "2.000", "60", "all steps done", "7,680", "987,654", "43.2")
    ]
    assert second[0] == "second"
    assert privacy == ["banking_expert", "sft", "4.20", "8.00", "1e-05", "1", "0.3", "6.400%", "–"]
    assert none[2] == "–"
    assert none[-1] == "reproducible mode: whoever knows the seed knows the noise"


def test_a_stage_without_privacy_has_a_row() -> None:
    metrics = made_metrics(claim=False)
    metrics["privacy"] = {"enabled": False, "epsilon": None, "reason": "trained without differential privacy"}
    privacy = Rows(metrics_page([metrics])).rows[-1]
    assert privacy == ["banking_expert", "sft", *["–"] * 6, "trained without differential privacy"]


def test_a_stage_with_a_reward_has_a_row_of_its_own() -> None:
    page = Rows(metrics_page([made_metrics(), made_rewards()]))
    first, second, rewarded, *_ = [row for row in page.rows if row]
    assert first[4] == "2.000"
    assert second[1:5] == ["reinforce", "3.100", "2.250", "–"]  # what a policy gradient descends is no such loss
    assert rewarded == [
        *("banking_expert", "reinforce", "finance", "0.480", "0.680", "0.200", "2.100", "2.100"),
        *("31.0", "31.0", "30%"),
    ]
    assert "Rewards" not in metrics_page([made_metrics()])


def test_the_page_says_how_private_it_is() -> None:
    assert "as private as the data" in metrics_page([made_metrics()])


def test_the_page_escapes_what_it_shows() -> None:
    page = metrics_page([made_metrics(name="<script>alert(1)</script>")])
    assert "<script>" not in page
    assert Rows(page).rows[1][0] == "<script>alert(1)</script>"


def run_script(name: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPTS / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_scripts_write_their_files(tmp_path: Path) -> None:
    (tmp_path / "training_metrics.json").write_text(json.dumps(made_metrics()))
    metrics = tmp_path / "training_metrics.json"
    plot = run_script("plot_training.py", "--metrics", metrics, "--curves", tmp_path / "new" / "curves.svg")
    assert (plot.stderr, plot.returncode) == ("", 0)
    assert "</svg>" in (tmp_path / "new" / "curves.svg").read_text()
    (tmp_path / "rl_metrics.json").write_text(json.dumps(made_rewards()))
    rewards = ("--metrics", tmp_path / "rl_metrics.json", "--curves", tmp_path / "rl.svg")
    for earlier in ((), (metrics,)):
        plot = run_script("plot_rewards.py", *rewards, "--earlier", *earlier)
        assert (plot.stderr, plot.returncode) == ("", 0)
    assert "</svg>" in (tmp_path / "rl.svg").read_text()
    table = run_script("tabulate_metrics.py", "--metrics", metrics, metrics, "--page", tmp_path / "metrics.html")
    assert (table.stderr, table.returncode) == ("", 0)
    assert (tmp_path / "metrics.html").read_text().count('<td class="text">banking_expert</td>') == 4


def test_a_missing_metrics_file_is_one_plain_line(tmp_path: Path) -> None:
    done = run_script("plot_training.py", "--metrics", tmp_path / "none.json", "--curves", tmp_path / "c.svg")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none.json'} does not exist\n"
