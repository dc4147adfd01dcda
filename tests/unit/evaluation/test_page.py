"""The page of evaluations, and what its figures are made of."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sealed_experts.errors import UserError
from sealed_experts.evaluation.evaluation_page import evaluation_page
from sealed_experts.evaluation.rows import axis_shares, figure_rows, signed_interval, with_interval
from sealed_experts.evaluation.stored import evaluated_experts, read_evaluation
from tests.evaluations import answer, asked_without_reward, leave_evaluation, made_evaluation, measured, without_reward

SCRIPT = Path(__file__).parents[3] / "scripts" / "tabulate_evaluations.py"


class Page(HTMLParser):
    """A page's tables, texts and open tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
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
        self.text.append(data)
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data

    def row(self, label: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == label)


def test_before_and_after_stand_side_by_side() -> None:
    page = Page(evaluation_page([made_evaluation(), without_reward()]))
    assert page.open == []
    assert page.row("banking_expert") == [
        *("banking_expert", "counts", "+0.060 [+0.040, +0.080]", "0.420", "0.480", "2.500", "2.031")
    ]
    assert page.row("plain_expert")[1:] == ["no reward was measured", "–", "–", "–", "2.500", "2.000"]
    assert page.row("Reward (mean, 0 to 1)") == [
        *("Reward (mean, 0 to 1)", "0.290 [0.270, 0.310]", "0.420 [0.400, 0.440]", "0.480 [0.460, 0.500]"),
        "+0.060 [+0.040, +0.080]",
    ]
    assert page.row("· safety (weight 0.1)")[-1] == "-0.300 [-0.320, -0.280]"
    assert page.row("KL (nats per token, from the stage before)")[1:] == ["–", "0.250", "0.125", "–"]


def test_an_expert_that_answers_without_a_reward_is_shown_by_its_own_metrics() -> None:
    page = Page(evaluation_page([made_evaluation(), asked_without_reward()]))
    assert page.row("asked_expert")[-2:] == ["0.125", "0.500"]
    assert page.row("banking_expert")[-2:] == ["–", "–"]
    assert page.row("Exact match (share of answers)")[1:] == [
        *("0.125 [0.105, 0.145]", "0.500 [0.480, 0.520]", "+0.375 [+0.355, +0.395]")
    ]
    assert page.row("· usable (share)")[1:] == ["75.0%", "75.0%", "–"]
    assert "Exact match 1.00" in page.text


def test_what_does_not_count_is_said_in_full() -> None:
    page = Page(evaluation_page([made_evaluation(kl=0.75)]))
    assert page.row("banking_expert")[1] == "does not count"
    assert "does not count: KL of 0.75 nats per token is above 0.5" in page.text


def test_the_shares_of_the_axes_show_what_a_reward_lives_on() -> None:
    """By hand: 0.4·0.5 + 0.3·0.4 + 0.2·0.5 + 0.1·0.6 = 0.48, of which terminology has 0.12, a quarter."""
    shares = axis_shares(made_evaluation(), "reinforce")
    assert {name: round(share.points, 9) for name, share in shares.items()} == {
        "format": 0.2,
        "terminology": 0.12,
        "relevance": 0.1,
        "safety": 0.06,
    }
    assert shares["terminology"].share == pytest.approx(0.25)
    row = Page(evaluation_page([made_evaluation()])).row("terminology (weight 0.3)")
    assert row[1:] == ["0.000 (0%)", "0.030 (7%)", "0.120 (25%)"]


def test_a_penalty_is_shown_apart_from_the_axes() -> None:
    made = made_evaluation()
    for model in made["models"].values():
        model["metrics"]["reward.repetition"] = measured(0.5)
        model["metrics"]["reward"]["mean"] -= 0.125
    made["metrics"].append({"metric": "reward.repetition", "title": "· repetition", "unit": "for information"})
    page = Page(evaluation_page([made]))
    assert "· repetition (for information)" in [row[0] for row in page.rows if row]
    assert "repetition" not in axis_shares(made, "sft")
    assert "0.355, 0.125 less than its axes" in page.text


def test_a_reward_of_zero_has_no_shares() -> None:
    made = made_evaluation()
    for figure in made["models"]["base"]["metrics"].values():
        figure["mean"] = 0.0
    assert {share.share for share in axis_shares(made, "base").values()} == {0.0}
    evaluation_page([made])


def test_samples_show_every_answer() -> None:
    text = " ".join(Page(evaluation_page([made_evaluation()])).text)
    for expected in ("What is a loan?", "Money lent.", "Loan is.", "It is money.", "A loan is money that … (cut)"):
        assert expected in text
    assert "Money lent. …" not in text


def hostile(evaluation: dict[str, Any]) -> dict[str, Any]:
    attack = "</div><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    sample = evaluation["samples"][0]
    sample["prompt"] = attack
    sample["reference"]["text"] = attack
    sample["answers"] = {name: answer(attack) for name in sample["answers"]}
    evaluation |= {"expert": attack, "dataset": attack}
    return evaluation


def test_nothing_that_a_record_or_a_model_says_becomes_markup() -> None:
    page = Page(evaluation_page([hostile(made_evaluation())]))
    assert page.open == []
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("</div><script>alert(1)</script><img src=x onerror=alert(1)>&amp;") >= 6


def test_axes_named_by_a_user_are_escaped_in_every_place() -> None:
    made = made_evaluation()
    name = '"><script>x'
    made["reward"]["weights"][name] = 0.5
    made["metrics"].append({"metric": f"reward.{name}", "title": f"· {name}", "unit": name})
    for model in made["models"].values():
        model["metrics"][f"reward.{name}"] = measured(0.5)
    for said in (made["samples"][0]["reference"], *made["samples"][0]["answers"].values()):
        said["scores"][f"reward.{name}"] = 0.5
    page = Page(evaluation_page([made]))
    assert "script" not in page.tags
    assert page.open == []


def test_the_page_says_how_private_it_is() -> None:
    assert "as private as the data" in evaluation_page([made_evaluation()])
    assert "http" not in evaluation_page([made_evaluation()])  # it needs nothing from elsewhere


def test_figures_without_a_value_are_left_out() -> None:
    assert [row.label for row in figure_rows(without_reward())] == ["Held-out loss", "Perplexity"]


def test_numbers_as_text() -> None:
    assert with_interval({"mean": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
    assert with_interval({"mean": 0.5, "low": None, "high": None}) == "0.500"
    assert with_interval(None) == "–"
    assert signed_interval({"mean": 0.5, "low": -0.25, "high": 1.25}) == "+0.500 [-0.250, +1.250]"


def test_large_perplexities_stay_short() -> None:
    made = made_evaluation()
    made["models"]["base"]["metrics"]["perplexity"] |= {"mean": 12345.678, "low": 12000.0, "high": 13000.0}
    (row,) = (row for row in figure_rows(made) if row.label == "Perplexity")
    assert row.cells[0] == "12,346 [12,000, 13,000]"
    assert re.fullmatch(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", row.cells[1])


def test_evaluations_are_found_and_read(tmp_path: Path) -> None:
    for name in ("b_expert", "a_expert"):
        path = leave_evaluation(tmp_path, made_evaluation(name))
    assert evaluated_experts(tmp_path) == ["a_expert", "b_expert"]
    assert read_evaluation(path)["expert"] == "a_expert"
    path.write_text('{"expert": "a_expert"}')
    with pytest.raises(UserError, match="is not an evaluation of this version: delete it"):
        read_evaluation(path)
    with pytest.raises(UserError, match="does not exist"):
        read_evaluation(tmp_path / "none.json")


def test_the_script_writes_the_page(tmp_path: Path) -> None:
    path = leave_evaluation(tmp_path, made_evaluation())
    command = [sys.executable, SCRIPT, "--evaluations", path, "--page", tmp_path / "report" / "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "banking_expert" in (tmp_path / "report" / "page.html").read_text()
