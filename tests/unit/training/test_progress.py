"""The progress of a run, read from the files that its trainers write."""

import json
import os
from pathlib import Path

import pytest

from sealed_experts.cli.progress import StageProgress, found_stages, last_error, read_metrics, read_progress
from sealed_experts.files.locks import folder_lock
from tests.traces import NOW, leave, step_line


def leave_log(results: Path, text: str) -> Path:
    log = results / "experts" / "banking_expert" / "logs" / "train_sft.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return log


def look(results: Path, *, now: float = NOW) -> StageProgress:
    (progress,) = read_progress(results=results, stages=[("banking_expert", "sft")], now=now)
    return progress


def test_a_stage_without_files_waits(tmp_path: Path) -> None:
    assert look(tmp_path) == StageProgress(expert="banking_expert", stage="sft", state="waiting")


def test_a_running_stage_shows_its_newest_figures(tmp_path: Path) -> None:
    metrics = [{"step": 0, "val_loss": 3.5}, step_line(10), step_line(20), {"step": 20, "val_loss": 2.9}]
    folder = leave(tmp_path, state={}, metrics=metrics)
    with folder_lock(folder / "checkpoints"):
        progress = look(tmp_path)
    assert progress.state == "running"
    assert (progress.step, progress.max_steps) == (20, 60)
    assert progress.figures["Loss"] == pytest.approx(3.0 - 20 / 60)
    assert progress.figures["Held-out loss"] == 2.9
    assert (progress.epsilon, progress.target_epsilon) == (2.5, 8.0)
    assert progress.tokens_per_second == 1234.5
    assert progress.seconds_left == pytest.approx(80.0)  # 40 steps left at 2 s per step


def test_the_time_left_runs_down_between_log_lines_and_stops_at_zero(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={}, metrics=[step_line(10), step_line(20)])
    with folder_lock(folder / "checkpoints"):
        assert look(tmp_path, now=NOW + 30).seconds_left == pytest.approx(50.0)
        assert look(tmp_path, now=NOW + 500).seconds_left == 0.0


def test_the_time_left_follows_the_present_pace(tmp_path: Path) -> None:
    slow_start = [step_line(1, seconds=500.0), step_line(11, seconds=510.0), step_line(21, seconds=520.0)]
    folder = leave(tmp_path, state={"step": 21}, metrics=slow_start)
    with folder_lock(folder / "checkpoints"):
        assert look(tmp_path).seconds_left == pytest.approx(39.0)  # 1 s per step since the first logged step


def test_a_resumed_stage_says_so(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={"resumed_from": 15}, metrics=[step_line(20)])
    with folder_lock(folder / "checkpoints"):
        progress = look(tmp_path)
    assert (progress.state, progress.resumed_from) == ("resumed", 15)


def test_running_without_a_living_trainer_is_interrupted(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={}, metrics=[step_line(20)])
    with folder_lock(folder / "checkpoints"):
        pass  # the lock file remains, as after a kill
    progress = look(tmp_path)
    assert progress.state == "interrupted"
    assert progress.seconds_left is None


def test_done_needs_the_adapter(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={"state": "done", "step": 60}, metrics=[step_line(60)])
    assert look(tmp_path).state == "waiting"  # deleted: it will be trained again
    (folder / "adapter_final.pt").write_bytes(b"weights")
    assert look(tmp_path).state == "done"


def test_an_adapter_without_history_is_done(tmp_path: Path) -> None:
    (leave(tmp_path) / "adapter_final.pt").write_bytes(b"weights")
    assert look(tmp_path).state == "done"


def test_a_failed_stage_carries_its_error(tmp_path: Path) -> None:
    leave(tmp_path, state={"state": "failed", "error": "the device ran out of memory in step 21"})
    progress = look(tmp_path)
    assert (progress.state, progress.error) == ("failed", "the device ran out of memory in step 21")


def test_a_job_that_died_before_it_trained_is_failed_by_its_log(tmp_path: Path) -> None:
    leave_log(tmp_path, "loading\nerror: results/base/demo was changed: build it again\n")
    progress = look(tmp_path)
    assert (progress.state, progress.error) == ("failed", "results/base/demo was changed: build it again")


def test_the_log_of_a_later_attempt_counts_and_of_an_earlier_one_does_not(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={"state": "interrupted"})
    log = leave_log(tmp_path, "error: no such file\n")
    state_time = (folder / "state.json").stat().st_mtime
    os.utime(log, (state_time - 10, state_time - 10))
    assert look(tmp_path).state == "interrupted"
    os.utime(log, (state_time + 10, state_time + 10))
    assert look(tmp_path).state == "failed"


def test_a_traceback_ends_with_its_error(tmp_path: Path) -> None:
    text = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    f()\nValueError: of no use\nbye\n'
    assert last_error(leave_log(tmp_path, text)) == "ValueError: of no use"


def test_the_last_of_two_errors_counts(tmp_path: Path) -> None:
    text = "Traceback (most recent call last):\n  File\nKeyError: 1\n\nDuring handling\n\nerror: second\n"
    assert last_error(leave_log(tmp_path, text)) == "second"


def test_a_log_without_errors_names_none(tmp_path: Path) -> None:
    assert last_error(leave_log(tmp_path, "resumed after step 20 of 60\nno error: all is well\n")) is None
    assert last_error(tmp_path / "missing.log") is None


def test_a_log_cannot_steer_the_terminal(tmp_path: Path) -> None:
    error = last_error(leave_log(tmp_path, "error: \x1b[2J\x1b]0;title\x07gone " + "x" * 1000 + "\n"))
    assert error is not None
    assert error.isprintable()
    assert len(error) == 300


@pytest.mark.parametrize("tail", ['{"step": 30, "lo', "\x00\x00\x00", '{"step": 3\n\n[1, 2]\nnull'])
def test_torn_lines_are_passed_over(tmp_path: Path, tail: str) -> None:
    folder = leave(tmp_path, metrics=[step_line(10), step_line(20)])
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write(tail)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [10, 20]


def test_a_metrics_line_cut_inside_a_letter_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + '{"note": "ε'.encode()[:-1])
    assert read_metrics(path) == [{"step": 1}]


def test_an_empty_draw_leaves_the_last_known_loss(tmp_path: Path) -> None:
    leave(tmp_path, state={}, metrics=[step_line(10, loss=2.75), step_line(20, loss=None)])
    assert look(tmp_path).figures["Loss"] == 2.75


def leave_rewards(results: Path, *lines: dict[str, object]) -> StageProgress:
    folder = results / "experts" / "banking_expert" / "rl"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "adapter_rl_final.pt").write_bytes(b"weights")
    (progress,) = read_progress(results=results, stages=[("banking_expert", "reinforce")], now=NOW)
    return progress


def test_a_stage_with_a_reward_shows_it_and_no_loss(tmp_path: Path) -> None:
    progress = leave_rewards(
        tmp_path,
        {"step": 0, "val_loss": 2.5, "val_reward": 0.25, "val_kl": 0.0},
        step_line(1, loss=-3.0, reward_mean=0.375, kl=0.125),
        step_line(2, loss=None, reward_mean=None, kl=None),  # an empty draw
        {"step": 2, "val_loss": 2.5, "val_reward": 0.5, "val_kl": 0.25},
    )
    assert progress.figures == {"Reward": 0.375, "Held-out": 0.5, "KL": 0.125}


def test_before_its_first_step_a_stage_knows_its_held_out_reward(tmp_path: Path) -> None:
    progress = leave_rewards(tmp_path, {"step": 0, "val_loss": 2.5, "val_reward": 0.25, "val_kl": 0.0})
    assert progress.figures == {"Reward": None, "Held-out": 0.25, "KL": None}


def test_stages_are_found_by_their_traces(tmp_path: Path) -> None:
    leave(tmp_path, state={}, expert="b_expert")
    leave(tmp_path, metrics=[step_line(1)], expert="a_expert")
    (tmp_path / "experts/a_expert/rl/checkpoints").mkdir(parents=True)
    for other in ("logs", "benchmarks", "peft"):
        (tmp_path / "experts/a_expert" / other).mkdir()
    assert found_stages(tmp_path) == [("a_expert", "reinforce"), ("a_expert", "sft"), ("b_expert", "sft")]


def test_a_stage_that_the_budget_cut_short_is_noted(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={"state": "done", "step": 1, "max_steps": 3}, metrics=[step_line(1)])
    (folder / "adapter_final.pt").write_bytes(b"weights")
    assert look(tmp_path).note is None  # its metrics do not exist yet
    (folder / "training_metrics.json").write_text(json.dumps({"stopped_reason": "privacy_budget"}))
    assert (look(tmp_path).state, look(tmp_path).note) == ("done", "privacy budget spent")


def test_epsilon_is_not_lost_by_a_resume_after_the_last_step(tmp_path: Path) -> None:
    folder = leave(tmp_path, state={"state": "done", "step": 60, "epsilon": None}, metrics=[step_line(60)])
    (folder / "adapter_final.pt").write_bytes(b"weights")
    assert look(tmp_path).epsilon == 2.5


def test_an_interrupted_stage_shows_the_step_that_it_saved(tmp_path: Path) -> None:
    saved = "received SIGINT; saved after step 34 of 60"
    leave(tmp_path, state={"state": "interrupted", "step": 30, "error": saved}, metrics=[step_line(30)])
    assert (look(tmp_path).state, look(tmp_path).note) == ("interrupted", saved)
    leave(tmp_path, state={"state": "running", "step": 34, "resumed_from": 34}, metrics=[step_line(30)])
    assert look(tmp_path).step == 34


@pytest.mark.parametrize("state", [None, {"state": "failed", "error": "KeyboardInterrupt"}, {"state": "running"}])
def test_ctrl_c_is_an_interruption_and_no_failure(tmp_path: Path, state: dict[str, object] | None) -> None:
    leave(tmp_path, state=state)
    leave_log(tmp_path, "Traceback (most recent call last):\n  File x, line 1\nKeyboardInterrupt\n")
    progress = look(tmp_path)
    assert (progress.state, progress.error, progress.note) == ("interrupted", None, None)
