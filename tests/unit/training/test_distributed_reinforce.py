"""Policy gradients on several processes: the same rollouts give the same rewards, baseline, weights and noise."""

import json

import pytest

from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.scoring import Scorer
from sealed_experts.training.stage import train_stage
from tests.distributed import train_as
from tests.unit.training.test_distributed import close
from tests.unit.training.test_reinforce_stage import PLAIN, PRIVATE, objective, rl_job, train
from tests.unit.training.test_stage import comparable, make_job, supervised

REPRODUCIBLE = PRIVATE.replace(mode="reproducible")


@pytest.fixture
def jobs(tmp_path, tiny_base, tiny_dataset):
    """Two equal jobs, for one process and for several."""

    def make(*, privacy, batch, steps):
        start = make_job(tmp_path / "start", tiny_base, tiny_dataset, privacy=privacy, max_steps=1)
        train_stage(start, supervised)
        return [
            rl_job(
                tmp_path / name, start, privacy=privacy, rollout_batch_size=batch, total_steps=steps, eval_examples=3
            )
            for name in ("alone", "shared")
        ]

    return make


@pytest.mark.parametrize(
    ("privacy", "batch", "count"), [(PLAIN, 8, 2), (REPRODUCIBLE, 8, 2), (REPRODUCIBLE, 2, 3)], ids=str
)
def test_from_the_same_rollouts_processes_refine_as_one_would(tmp_path, jobs, monkeypatch, privacy, batch, count):
    """Rollouts are fixed, because the shape of a pass can change a token at the edge between two."""
    alone, shared = jobs(privacy=privacy, batch=batch, steps=3)
    kept = {}
    original = Scorer.roll_out

    def keep(self, model, examples, *, stream, step):
        rollouts = original(self, model, examples, stream=stream, step=step)
        kept.update({(step, len(kept) if step == 0 else row.unit): row for row in rollouts})
        return rollouts

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "roll_out", keep)
        expected = train(alone)

    def before(rank):
        def repeat(self, model, examples, *, stream, step):
            if step == 0:  # the self-check's
                return original(self, model, examples, stream=stream, step=step)
            with open(tmp_path / f"{rank}.jsonl", "a") as units:
                units.write(json.dumps([[step, example.unit] for example in examples]) + "\n")
            return [kept[step, example.unit] for example in examples]

        Scorer.roll_out = repeat

    ended = train_as(count, shared, objective(shared), folder=tmp_path / "said", before=before)
    assert ended.codes == [0] * count, ended.said
    state = load_state(shared.output)
    lines = [line for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    seen = [tuple(pair) for line in lines for pair in json.loads(line)]
    assert sorted(seen) == sorted((step, unit) for step, unit in kept if step)
    close(expected, state)
    assert state["objective"]["baseline"] == pytest.approx(expected["objective"]["baseline"], abs=1e-9)
    for ours, theirs in zip(comparable(state["history"]), comparable(expected["history"]), strict=True):
        if "loss" not in ours:
            continue  # the held-out answers are sampled again
        assert ours.pop("axes") == pytest.approx(theirs.pop("axes"))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert state["privacy"] == expected["privacy"]


def test_processes_sample_and_score_by_themselves(tmp_path, jobs):
    _, shared = jobs(privacy=PRIVATE, batch=8, steps=2)
    ended = train_as(2, shared, objective(shared), folder=tmp_path / "said")
    assert ended.codes == [0, 0], ended.said
    state = load_state(shared.output)
    lines = [line for line in state["history"] if "loss" in line]
    assert all(0 <= line["reward_min"] <= line["reward_mean"] <= line["reward_max"] <= 1 for line in lines)
    assert [event["steps"] for event in state["privacy"]["events"]] == [1, 2]
