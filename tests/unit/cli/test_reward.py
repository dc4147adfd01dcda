"""`sealed-experts reward`: one answer, a file of answers, options, and error messages."""

import io
import json
import os
import re
import statistics
import subprocess
import sys
import time

import pytest

from sealed_experts.cli import main as cli
from sealed_experts.rewards import REWARDS
from sealed_experts.rewards.making.maker import make_reward
from tests.conftest import ROOT

PAIRS = [
    ("What is a bond?", "A bond is a loan.\nIt pays interest."),
    ("Should I buy it?", "Yes"),
    ("Why?", ""),
]


def call(*arguments, **keywords):
    """Run the command in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "sealed_experts.cli.main", "reward", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        check=False,
        **keywords,
    )


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r, "id": 1}) + "\n" for p, r in PAIRS))
    return path


def printed(capsys, *arguments):
    assert cli.main(["reward", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_json_is_the_reward_and_its_axes(capsys):
    line = json.loads(printed(capsys, "finance", "--prompt", PAIRS[0][0], "--response", PAIRS[0][1], "--json"))
    score = make_reward("finance", {}).score(*PAIRS[0])
    assert line == {"reward": score.value, "axes": dict(score.axes)}
    assert list(line["axes"]) == ["format", "terminology", "relevance", "safety"]


def test_for_people_it_is_a_table_whose_contributions_add_up(capsys):
    text = printed(capsys, "finance", "--prompt", "Should I buy it?", "--response", "Buy a bond.")
    assert text.splitlines()[0] == "reward 0.300"
    rows = {row.split()[0]: row.split()[1:] for row in text.splitlines()[3:]}
    # Of the prompt's words only "buy" is in the answer, and it has three letters.
    assert rows == {
        "format": ["0.400", "0.400", "0.160"],
        "terminology": ["0.400", "0.300", "0.120"],
        "relevance": ["0.000", "0.200", "0.000"],
        "safety": ["0.200", "0.100", "0.020"],
    }


def test_the_penalty_shows_what_it_takes(capsys):
    options = '{"keywords": ["so"], "repetition_penalty": 0.5}'
    text = printed(capsys, "keyword_contains", "--options", options, "--prompt", "", "--response", "so " * 60)
    reward = float(text.splitlines()[0].split()[1])
    rows = {row.split()[0]: row.split()[1:] for row in text.splitlines()[3:]}
    assert rows["keyword_contains"] == ["1.000", "1.000", "1.000"]
    assert rows["repetition"][1:] == ["–", f"{reward - 1:.3f}"]


def test_a_file_is_scored_line_by_line(answers, capsys):
    lines = [json.loads(line) for line in printed(capsys, "finance", "--file", answers, "--json").splitlines()]
    reward = make_reward("finance", {})
    assert [line["reward"] for line in lines] == [reward.score(*pair).value for pair in PAIRS]


def test_a_file_for_people_is_its_figures(answers, capsys):
    text = printed(capsys, "finance", "--file", answers)
    scores = [make_reward("finance", {}).score(*pair) for pair in PAIRS]
    values = [score.value for score in scores]
    mean = statistics.fmean(values)
    assert text.splitlines()[0] == (
        f"3 answers: mean reward {mean:.3f}, std {statistics.pstdev(values):.3f}, min {min(values):.3f},"
        f" max {max(values):.3f}"
    )
    rows = {row.split()[0]: row.split()[1:] for row in text.splitlines()[3:]}
    for axis, weight in (("format", 0.4), ("terminology", 0.3), ("relevance", 0.2), ("safety", 0.1)):
        axis_mean = statistics.fmean(score.axes[axis] for score in scores)
        assert rows[axis] == [f"{axis_mean:.3f}", f"{weight:.3f}", f"{100 * weight * axis_mean / mean:.1f}", "%"]
    assert sum(float(row[2]) for row in rows.values()) == pytest.approx(100, abs=0.3)


def test_shares_add_up_with_the_penalty(answers, capsys):
    text = printed(capsys, "finance", "--file", answers, "--options", "{repetition_penalty: 1.0}")
    shares = [float(share) for share in re.findall(r"(-?[0-9.]+) %", text)]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_no_share_of_nothing(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"prompt": "", "response": ""}')
    text = printed(capsys, "keyword_contains", "--options", "{keywords: [fee]}", "--file", tmp_path / "a.jsonl")
    assert text.splitlines()[0].startswith("1 answer: mean reward 0.000")
    assert text.splitlines()[-1].split() == ["keyword_contains", "0.000", "1.000", "–"]


def test_standard_input(answers, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answers.read_bytes())))
    piped = printed(capsys, "finance", "--file", "-", "--json")
    assert piped == printed(capsys, "finance", "--file", answers, "--json")


def test_options_inline_or_in_a_file(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("keywords: [fee, tax]\n")
    asked = ("keyword_contains", "--prompt", "p", "--response", "a fee", "--json", "--options")
    for options in ('{"keywords": ["fee", "tax"]}', "{keywords: [fee, tax]}", tmp_path / "options.yaml"):
        assert json.loads(printed(capsys, *asked, options))["reward"] == 0.5


def test_list_has_one_line_a_reward(capsys):
    known = {name: reward.about for name, reward in REWARDS.items()}
    known["module:function"] = "your own function, f(prompt, response)"
    lines = printed(capsys, "--list").splitlines()
    assert [re.split(" {2,}", line) for line in lines] == [[name, text] for name, text in known.items()]
    assert json.loads(printed(capsys, "--list", "--json")) == known


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["finance"],
        ["finance", "--prompt", "p"],
        ["finance", "--response", "r"],
        ["finance", "--file", "f", "--prompt", "p"],
        ["finance", "--file", "f", "--prompt", "p", "--response", "r"],
        ["--prompt", "p", "--response", "r"],
        ["finance", "--list"],
        ["--list", "--file", "f"],
        ["--list", "--options", "{}"],
        ["finance", "other", "--prompt", "p", "--response", "r"],
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["reward", *arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: sealed-experts" in captured.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "answers.jsonl holds no answers"),
        (b'{"prompt": "", "response": ""}\n\n', "answers.jsonl:2: not JSON"),
        (b'{"prompt": "", "response": ""}\nno\n', "answers.jsonl:2: not JSON"),
        (b'{"prompt": ""}\n', "answers.jsonl:1: `response` is missing"),
        (b'{"prompt": null, "response": ""}\n', "answers.jsonl:1: `prompt` is NoneType; it must be text"),
        (b'{"prompt": 1, "response": ""}\n', "answers.jsonl:1: `prompt` is int"),
        (b'["a", "b"]\n', "answers.jsonl:1: this is list, not an object"),
        (b'{"prompt": "\xff", "response": ""}\n', "answers.jsonl:1: not UTF-8 (byte 13 of the line)"),
        (b'{"prompt": "a", "prompt": "b", "response": ""}\n', "answers.jsonl:1: not JSON (duplicate key 'prompt')"),
        (b"[" * 100_000, "answers.jsonl:1: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, capsys, content, message):
    (tmp_path / "answers.jsonl").write_bytes(content)
    assert cli.main(["reward", "finance", "--file", str(tmp_path / "answers.jsonl")]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "", "response": "a"}\r\n{"prompt": "", "response": "b"}'
    )
    assert len(printed(capsys, "finance", "--file", tmp_path / "a.jsonl", "--json").splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finence", "--prompt", "p", "--response", "r"], "did you mean `finance`?"),
        (["keyword_contains", "--prompt", "p", "--response", "r"], "keywords: none are given"),
        (["finance", "--file", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["finance", "--file", "."], "cannot read .: Is a directory"),
        (["finance", "--options", "nowhere.yaml", "--file", "a"], "nowhere.yaml"),
        (["finance", "--options", "{", "--file", "a"], "--options, line 2: this is not YAML"),
        (
            ["keyword_contains", "--options", "{keyword: [a]}", "--file", "a"],
            "keyword: no such setting; did you mean `keywords`?",
        ),
        (["keyword_contains", "--options", "{keywords: a}", "--file", "a"], 'keywords: "a" is not a list; write [a]'),
        (["finance", "--options", "{repetition_penalty: 2}", "--file", "a"], "repetition_penalty: 2 is not"),
        (["no_module_here:f", "--prompt", "p", "--response", "r"], "there is no module `no_module_here`"),
    ],
)
def test_mistakes_are_one_plain_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reward", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_function_of_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text("def f(prompt, response):\n    return len(response) / 4\n")
    done = call("mine:f", "--prompt", "p", "--response", "ab", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"reward": 0.5, "axes": {"mine:f": 0.5}}
    done = call("mine:f", "--prompt", "p", "--response", "abcdef", cwd=tmp_path)
    assert done.returncode == 1
    assert b"returned 1.5 (float), which is outside [0, 1]" in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_a_function_prints_does_not_stand_between_the_scores(tmp_path):
    (tmp_path / "own.py").write_text("print('loading')\ndef f(p, r):\n    print('scoring')\n    return 0.25\n")
    done = call("own:f", "--prompt", "p", "--response", "r", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"reward": 0.25, "axes": {"own:f": 0.25}}
    assert done.stderr.split() == [b"loading", b"scoring"]


def test_help_explains_and_shows_examples():
    done = call("--help")
    assert done.returncode == 0
    assert b"examples:" in done.stdout


def test_it_starts_at_once():
    arguments = ("finance", "--prompt", "p", "--response", "r", "--json")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert call(*arguments).returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.5  # 0.2 s on an idle machine; loading torch alone would take longer than this
