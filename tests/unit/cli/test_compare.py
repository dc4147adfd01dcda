"""`sealed-experts compare`: its output at any width, and its messages if there is nothing to show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.cli import compare as command
from sealed_experts.cli import main as cli
from tests.evaluations import answer, leave_evaluation, made_evaluation, without_reward


@pytest.fixture
def results(tmp_path: Path) -> Path:
    leave_evaluation(tmp_path, made_evaluation())
    leave_evaluation(tmp_path, without_reward())
    (tmp_path / "experts" / "new_expert").mkdir()
    return tmp_path


def compared(*arguments: str | Path) -> int:
    return cli.main(["compare", *map(str, arguments)])


def test_every_expert_is_shown(results: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert compared("--results", results) == 0
    text = capsys.readouterr().out
    assert "banking_expert on 250 held-out records of banking, scored by finance" in text
    assert "plain_expert on 250 held-out records of banking\n" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["base", "sft", "reinforce"] in lines
    loss = next(line for line in text.splitlines() if line.startswith("Held-out loss "))
    assert loss.split()[2:] == [
        "2.500",
        "[2.490,",
        "2.510]",
        "2.000",
        "[1.990,",
        "2.010]",
        "2.031",
        "[2.021,",
        "2.041]",
    ]
    assert "Gain in reward, sft → reinforce: +0.060 [+0.040, +0.080]; it counts" in text
    assert text.count("Gain in reward") == 1
    assert "Held-out loss, base → sft: -0.500 [-0.520, -0.480]" in text


def test_a_gain_that_does_not_count_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    leave_evaluation(tmp_path, made_evaluation(kl=2.5, loss=2.5))
    assert compared("--results", tmp_path) == 0
    expected = (
        "it does not count: KL of 2.50 nats per token is above 0.5;"
        " the held-out perplexity is 64.9% worse, more than 5%"
    )
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("width", [66, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_broken(
    width: int, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert compared("banking_expert", "--samples", "--results", results) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= width
    for interval in ("[2.490, 2.510]", "[0.460, 0.500]"):
        assert interval in text


def test_samples_stand_side_by_side(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert compared("banking_expert", "--results", results) == 0
    assert "What is a loan?" not in capsys.readouterr().out
    assert compared("banking_expert", "--results", results, "--samples") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Prompt 1: What is a loan?" in lines
    (said,) = (line for line in lines if line.startswith("Money lent."))
    assert said.index("Loan is.") < said.index("It is money.") < said.index("A loan is money that …")
    (rewards,) = (line for line in lines if line.startswith("reward 0."))
    assert rewards.split() == ["reward", "0.75", "reward", "0.50", "reward", "0.50", "reward", "0.62"]


def test_samples_of_an_expert_without_any(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared("plain_expert", "--results", results, "--samples") == 0
    assert "no sample answers" in capsys.readouterr().out


def test_an_answer_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_evaluation()
    made["samples"][0]["prompt"] = "\x1b]0;title\x07 [bold]?"
    made["samples"][0]["answers"]["sft"] = answer("\x1b[2J[red]x[/red]")
    leave_evaluation(tmp_path, made)
    assert compared("--results", tmp_path, "--samples") == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]?" in text  # shown as it is, not read as markup
    assert "[red]x[/red]" in text


def test_json_holds_the_evaluations(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared("--results", results, "--json") == 0
    experts = json.loads(capsys.readouterr().out)["experts"]
    assert [(one["expert"], one["verdict"]) for one in experts] == [
        ("banking_expert", "counts"),
        ("plain_expert", None),
    ]
    assert experts[0]["models"] == made_evaluation()["models"]


def test_experts_are_shown_in_the_order_asked_for_and_once(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared("plain_expert", "banking_expert", "plain_expert", "--results", results, "--json") == 0
    experts = json.loads(capsys.readouterr().out)["experts"]
    assert [one["expert"] for one in experts] == ["plain_expert", "banking_expert"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody", "--results", "{results}"], "is called 'nobody'; evaluated are banking_expert, plain_expert"),
        (["new_expert", "--results", "{results}"], "new_expert has no evaluation yet in "),
        (["--results", "{results}/nowhere"], "nowhere is not a folder: run this from the repository's root"),
        (["--results", "{results}/experts"], "no expert in "),
        (["x", "--results", "{results}/experts"], "none is evaluated yet"),
    ],
)
def test_mistakes_are_one_plain_line(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert compared(*(argument.format(results=results) for argument in arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_broken_evaluation_is_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "experts" / "banking_expert" / "evaluation.json"
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        assert compared("banking_expert", "--results", results) == 1
        assert f"error: {path} is not " in capsys.readouterr().err


def test_comparing_imports_nothing_heavy() -> None:
    code = (
        "import sys; import sealed_experts.cli.compare; "
        "sys.exit(bool({'torch', 'transformers', 'rich', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    scripts = str(Path(command.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": scripts}, check=True)
