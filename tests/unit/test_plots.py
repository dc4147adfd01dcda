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
from sealed_experts.evaluation.plots import draw_curves, save_figure, smoothed
from sealed_experts.evaluation.tables import metrics_page

SCRIPTS = Path(__file__).parents[2] / "scripts"


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
    table = run_script("tabulate_metrics.py", "--metrics", metrics, metrics, "--page", tmp_path / "metrics.html")
    assert (table.stderr, table.returncode) == ("", 0)
    assert (tmp_path / "metrics.html").read_text().count('<td class="text">banking_expert</td>') == 4


def test_a_missing_metrics_file_is_one_plain_line(tmp_path: Path) -> None:
    done = run_script("plot_training.py", "--metrics", tmp_path / "none.json", "--curves", tmp_path / "c.svg")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none.json'} does not exist\n"
