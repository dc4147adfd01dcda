"""Which records fit a stage's lengths is decided for each record alone: kept, cut, dropped, or refused."""

import dataclasses
from pathlib import Path

import pytest

from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.records.pair import Pair
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.training.fitting import fit_records
from sealed_experts.training.job import STAGE_KEYS, LaterStage
from sealed_experts.training.objectives.dpo import Dpo
from sealed_experts.training.objectives.reinforce import Reinforce
from sealed_experts.training.objectives.sft import Sft
from sealed_experts.training.summary import stage_metrics
from tests.unit.data.test_templates import TOKENIZERS
from tests.unit.training.test_stage import make_job, train

TOKENIZER = TOKENIZERS["plain"]
SHORT = Instruction.of(instruction="Why?", output="So.")
LONG = Instruction.of(instruction="Why?", output="so " * 300)
ASKED_LONG = Instruction.of(instruction="why " * 300, output="So.")


def fit(stage, *records):
    return fit_records(records, stage=stage, template="alpaca", tokenizer=TOKENIZER, path=Path("train.jsonl"))


def test_a_long_answer_is_cut_and_counted():
    found = fit(Sft(max_seq_len=80), SHORT, LONG)
    assert found.describe() == {"records": 2, "cut": 1, "dropped": 0}
    assert [len(rows[0].ids) for _, rows in found.records][1] == 80


def test_a_long_record_is_dropped_and_counted():
    found = fit(Sft(max_seq_len=80, long_rows="drop"), SHORT, LONG)
    assert found.describe() == {"records": 1, "cut": 0, "dropped": 1}
    assert [record for record, _ in found.records] == [SHORT]


def test_a_long_record_is_refused_with_its_question_and_the_way_out():
    with pytest.raises(UserError) as caught:
        fit(Sft(max_seq_len=80, long_rows="refuse"), SHORT, ASKED_LONG)
    message = str(caught.value)
    assert message.startswith("train.jsonl: 1 of 2 records are too long for sft.max_seq_len 80. The first is 'why why")
    assert "write sft.long_rows: drop" in message


def test_a_prompt_must_leave_room_for_an_answer_whatever_the_length_of_the_records_own():
    stage = Reinforce(max_seq_len=80, max_new_tokens=8)
    assert fit(stage, SHORT, LONG).describe() == {"records": 2, "cut": 0, "dropped": 0}
    with pytest.raises(UserError, match=r"reinforce\.max_new_tokens is 8\. Raise max_seq_len"):
        fit(stage, SHORT, ASKED_LONG)
    assert fit(stage.replace(long_rows="drop"), SHORT, ASKED_LONG).describe()["dropped"] == 1


def test_pairs_that_are_equal_once_they_are_cut_can_be_dropped():
    equal = Pair.of(prompt="Why?", chosen="so " * 200 + "yes", rejected="so " * 200 + "no")
    fine = Pair.of(prompt="Why?", chosen="Yes.", rejected="No.")
    assert fit(Dpo(max_seq_len=96, long_rows="drop"), fine, equal).describe() == {"records": 1, "cut": 0, "dropped": 1}


def test_no_record_left_is_an_error():
    with pytest.raises(UserError, match="2 of 2 records are too long"):
        fit(Sft(max_seq_len=80, long_rows="drop"), LONG, ASKED_LONG)


@pytest.mark.parametrize("policy", ["cut", "drop"])
def test_other_records_have_no_influence(policy):
    """Privacy needs it: a record is used or not, and cut or not, by its own tokens alone."""
    stage = Sft(max_seq_len=80, long_rows=policy)
    together = dict(fit(stage, SHORT, LONG, ASKED_LONG).records)
    for record in (SHORT, LONG, ASKED_LONG):
        alone = dict(fit(stage, record, SHORT).records)
        assert alone.get(record) == together.get(record)


def followed_by(job, stage):
    """Return the job of a stage that another one follows, on the same records."""
    settings = {
        **dict.fromkeys(STAGE_KEYS, ""),
        "template": job.template,
        "stage": stage.feature,
        "training": stage.numbers(),
    }
    return dataclasses.replace(job, later=[LaterStage(canonical_json(settings), job.train, job.val, job.stats)])


def test_what_a_later_stage_would_refuse_is_refused_before_the_first_one_trains(tmp_path, tiny_base, tiny_dataset):
    """A prompt too long for reinforce was found after sft had spent its \u03b5."""
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset)
    later = Reinforce(max_seq_len=24, max_new_tokens=16, rollout_batch_size=8).settled()
    job = followed_by(job, later)
    with pytest.raises(UserError, match=r"too long for reinforce\.max_seq_len 24.*reinforce\.long_rows: drop"):
        train(job)
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_a_later_stage_without_enough_units_is_refused_first(tmp_path, tiny_base, tiny_dataset):
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset)
    later = Reinforce(max_seq_len=200, max_new_tokens=16, rollout_batch_size=5000).settled()
    job = followed_by(job, later)
    with pytest.raises(UserError, match="reinforce: the logical batch is 5000"):
        train(job)


def test_the_metrics_count_records_that_were_cut(tmp_path, tiny_base, tiny_dataset):
    state = train(make_job(tmp_path, tiny_base, tiny_dataset, max_seq_len=70))
    assert state["records"]["train"]["cut"] > 0
    assert stage_metrics(state)["records"] == state["records"]
