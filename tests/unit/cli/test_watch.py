"""`sealed-experts watch`: what it shows, and when it ends."""

import argparse
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sealed_experts.cli import watch as command
from sealed_experts.cli.progress import StageProgress
from sealed_experts.errors import UsageError, UserError
from sealed_experts.files.locks import folder_lock
from tests.traces import leave, step_line

CONFIG = """
datasets: {banking: {source: demo, domain: banking}}
experts:
  banking_expert: {dataset: banking, routing: {keywords: [bank]}}
  fallback_expert: {dataset: banking, routing: {always_active: true}}
"""

RUNNING = StageProgress(
    expert="investment_expert",
    stage="sft",
    state="resumed",
    resumed_from=25,
    step=30,
    max_steps=60,
    figures={"Loss": 2.611, "Held-out loss": 2.4},
    epsilon=3.0149,
    target_epsilon=8.0,
    tokens_per_second=1300.2,
    seconds_left=3999.6,
)
REWARDED = StageProgress(
    expert="investment_expert",
    stage="reinforce",
    state="running",
    step=10,
    max_steps=25,
    figures={"Reward": 0.5123, "Held-out": 0.4987, "KL": 0.0214},
    epsilon=4.5,
    target_epsilon=8.0,
    tokens_per_second=900.0,
    seconds_left=60.0,
)
FAILED = StageProgress(expert="banking_expert", stage="sft", state="failed", error="no room for [bold]tensors[/bold]")
WAITING = StageProgress(expert="shared_attention", stage="sft")
DONE = StageProgress(expert="done_expert", stage="sft", state="done", step=60, max_steps=60)


def test_plain_lines() -> None:
    assert command.plain_line(RUNNING) == (
        "investment_expert sft: resumed after step 25, step 30 of 60 (50%), loss 2.611, validation loss 2.400, "
        "ε 3.01 of 8.00, 1,300 tokens/s, 1:06:40 left"
    )
    assert command.plain_line(WAITING) == "shared_attention sft: waiting"
    assert command.plain_line(FAILED).endswith("failed, no room for [bold]tensors[/bold]")


def test_a_stage_with_a_reward_shows_it_in_place_of_the_loss() -> None:
    assert command.plain_line(REWARDED) == (
        "investment_expert reinforce: running, step 10 of 25 (40%), reward 0.512, held-out reward 0.499, KL 0.021, "
        "ε 4.50 of 8.00, 900 tokens/s, 1:00 left"
    )


def test_before_its_first_step_only_the_held_out_reward_is_known() -> None:
    progress = dataclasses.replace(REWARDED, figures={"Held-out": 0.4987})
    assert "(40%), held-out reward 0.499, ε" in command.plain_line(progress)


def test_summary_line() -> None:
    assert command.summary_line([RUNNING, FAILED, WAITING, WAITING]) == "2 waiting, 1 resumed, 1 failed"
    assert command.summary_line([DONE, DONE]) == "all done in the last run: 2 stages"


def test_a_stage_that_the_budget_cut_short_says_so() -> None:
    progress = dataclasses.replace(DONE, step=1, max_steps=3, note="privacy budget spent")
    assert command.plain_line(progress) == "done_expert sft: done at step 1 of 3: privacy budget spent"
    assert "done_expert sft: privacy budget spent" in rendered([progress], width=100)


def test_an_interrupted_stage_says_where_it_saved() -> None:
    progress = dataclasses.replace(
        DONE, state="interrupted", step=30, note="received SIGINT; saved after step 34 of 60"
    )
    assert command.plain_line(progress).endswith("interrupted, step 30 of 60 (50%), " + str(progress.note))


def rendered(stages: list[StageProgress], *, width: int, height: int = 40) -> str:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(command.live_view(stages, console))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_live_view_cuts_no_cell(width: int) -> None:
    text = rendered([RUNNING, FAILED, WAITING], width=width)
    assert "…" not in text
    for expected in ("investment_expert", "resumed", "30/60", "3.01 of 8.00", "1:06:40"):
        assert expected in text
    assert "[bold]tensors[/bold]" in text  # shown as it is, not read as markup


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_live_view_of_both_kinds_of_stage_cuts_no_cell(width: int) -> None:
    text = rendered([RUNNING, REWARDED, WAITING], width=width)
    assert "…" not in text
    for expected in ("resumed", "30/60", "10/25", "4.50 of 8.00", "1:06:40"):
        assert expected in text
    assert width < 80 or "reinforce" in text  # two lines of one expert are told apart


def test_rewards_have_columns_of_their_own_once_there_are_any() -> None:
    header, sft, reinforce = rendered([RUNNING, REWARDED], width=140).splitlines()[:3]
    wanted = ["Step", "Loss", "Held-out", "loss", "Reward", "Held-out", "KL", "ε", "Tokens/s", "Left"]
    assert header.split()[-10:] == wanted
    assert sft.split()[-10:-5] == ["2.611", "2.400", "–", "–", "–"]
    assert reinforce.split()[-10:-5] == ["–", "–", "0.512", "0.499", "0.021"]
    assert "Reward" not in rendered([RUNNING, WAITING], width=140)


def test_the_live_view_uses_the_room_it_has() -> None:
    assert "Tokens/s" in rendered([RUNNING], width=140)
    assert "1,300" in rendered([RUNNING], width=140)
    assert "Tokens/s" not in rendered([RUNNING], width=70)


def test_a_low_terminal_shows_what_needs_attention_first() -> None:
    text = rendered([DONE] * 30 + [WAITING] * 30 + [RUNNING, FAILED], width=140, height=12)
    assert len(text.splitlines()) <= 12
    assert "investment_expert" in text
    assert "banking_expert" in text
    assert "done_expert" not in text
    assert "do not fit here" in text


def watch_arguments(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parsers(parser.add_subparsers())
    return parser.parse_args(["watch", *arguments])


def test_once_without_a_configuration_shows_what_has_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = watch_arguments("--results", str(tmp_path), "--once")
    assert args.run(args) == 0
    assert capsys.readouterr().out == "nothing has started yet\n"
    leave(tmp_path, state={"state": "failed", "error": "why"})
    assert args.run(args) == 0
    assert "banking_expert sft: failed, step 20 of 60" in capsys.readouterr().out


def test_once_with_a_configuration_shows_what_is_still_to_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    args = watch_arguments("--config", str(tmp_path / "config.yaml"), "--results", str(tmp_path), "--once")
    assert args.run(args) == 0
    assert capsys.readouterr().out.splitlines() == [
        "banking_expert sft: waiting",
        "fallback_expert sft: waiting",
        "2 waiting",
    ]


def test_a_missing_results_folder_is_named(tmp_path: Path) -> None:
    args = watch_arguments("--results", str(tmp_path / "nowhere"), "--once")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        args.run(args)


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_an_interval_must_be_a_time(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        watch_arguments("--interval", interval)
    assert "not a number of seconds above 0" in capsys.readouterr().err


def start_watching(tmp_path: Path) -> "subprocess.Popen[str]":
    (tmp_path / "config.yaml").write_text(
        CONFIG.split("  fallback_expert")[0].replace("keywords", "always_active: true, keywords")
    )
    code = (
        "import argparse, sys; from sealed_experts.cli import watch; parser = argparse.ArgumentParser(); "
        "watch.add_parsers(parser.add_subparsers()); args = parser.parse_args(); sys.exit(args.run(args))"
    )
    arguments = ["watch", "--config", "config.yaml", "--results", ".", "--interval", "0.05"]
    scripts = str(Path(command.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": scripts},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_off_a_terminal_only_changes_are_printed_and_the_watch_ends_with_the_run(tmp_path: Path) -> None:
    process = start_watching(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "banking_expert sft: waiting\n"
    time.sleep(0.3)  # several looks without a change
    folder = leave(tmp_path, state={"state": "done", "step": 60}, metrics=[step_line(60)])
    (folder / "adapter_final.pt").write_bytes(b"weights")
    out, err = process.communicate(timeout=20)
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("banking_expert sft: done, step 60 of 60 (100%)")
    assert lines[1] == "all done in the last run: 1 stage"
    assert (err, process.returncode) == ("", 0)


def test_the_watch_stays_while_a_run_makes_anew_what_the_last_one_had_done(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={"state": "done", "step": 60}, metrics=[step_line(60)])
    (folder / "adapter_final.pt").write_bytes(b"weights")
    with folder_lock(tmp_path / command.RUN_LOCK):
        process = start_watching(tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    assert process.communicate(timeout=20)[0] == "all done in the last run: 1 stage\n"


def test_once_is_there_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, state={"state": "failed", "error": "why"})
    args = watch_arguments("--results", str(tmp_path), "--once", "--json")
    assert args.run(args) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert (stage["expert"], stage["state"], stage["step"], stage["error"]) == ("banking_expert", "failed", 20, "why")
    args = watch_arguments("--results", str(tmp_path), "--json")
    with pytest.raises(UsageError, match="give --once"):
        args.run(args)


def test_ctrl_c_leaves_quietly(tmp_path: Path) -> None:
    process = start_watching(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("", "", 0)


def test_watching_imports_nothing_heavy() -> None:
    code = (
        "import sys; import sealed_experts.cli.watch; "
        "sys.exit(bool({'torch', 'transformers', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    scripts = str(Path(command.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": scripts}, check=True)
