"""How long a stage trains: steps or epochs, patience, and the best validation's weights."""

import json

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.models.attachment import trainable_parameters
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.training import run as run_module
from sealed_experts.training.best import BestValidation
from sealed_experts.training.checkpoints import CheckpointFolder, load_state
from sealed_experts.training.interruption import Interrupted
from sealed_experts.training.objectives.reinforce import Reinforce
from sealed_experts.training.objectives.sft import Sft, SupervisedFineTuning
from sealed_experts.training.stage import train_stage
from sealed_experts.training.summary import stage_metrics
from tests.distributed import train_as
from tests.unit.training.test_stage import PLAIN, PRIVATE, comparable, interrupt_after, make_job, train

BEST = 4


class Distance(SupervisedFineTuning):
    """A validation that needs only the weights: the distance of their norm from a target. Growing weights pass it."""

    def __init__(self, target):
        super().__init__(max_seq_len=64)
        self.target = target
        self.norms = []

    def validate(self, model, batches, *, check=lambda: None):
        norm = sum(float(parameter.detach().norm()) for parameter in trainable_parameters(model))
        self.norms.append(norm)
        return {"val_loss": abs(norm - self.target)}


def job_in(folder, base, dataset, *, privacy=PLAIN, **changes):
    return make_job(folder, base, dataset, **{"privacy": privacy, "max_steps": 12, "eval_steps": 1, **changes})


def measure(folder, base, dataset, privacy=PLAIN):
    """Return the norms that validation sees: one at the start, then one per step."""
    objective = Distance(0.0)
    train_stage(job_in(folder, base, dataset, privacy=privacy), lambda materials: objective)
    return objective.norms


def use_one_key(patch):
    """Let every run draw the same batches and noise, whatever its settings."""
    patch.setattr(CheckpointFolder, "secret_key", lambda self: bytes(range(32)))
    patch.setattr(run_module, "derive_key", lambda *parts: bytes(range(32)))


@pytest.fixture(scope="module", params=[PLAIN, PRIVATE], ids=["plain", "private"])
def growing(request, tmp_path_factory, tiny_base, tiny_dataset):
    """Privacy settings, a target that is nearest after step 4, and a run that does not choose by it."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_key(patch)
        norms = measure(tmp_path_factory.mktemp("norms"), tiny_base, tiny_dataset, request.param)
        target = norms[BEST]
        assert min(range(1, len(norms)), key=lambda step: abs(norms[step] - target)) == BEST
        yield request.param, target


@pytest.fixture
def one_key(monkeypatch):
    use_one_key(monkeypatch)


@pytest.mark.parametrize(
    ("epochs", "batch", "units", "plain", "private"),
    [
        (1, 4, 10, 3, 3),  # 4, 4 and 2; 2.5 draws
        (2, 4, 10, 6, 5),
        (3, 5, 10, 6, 6),
        (0.5, 4, 10, 2, 2),
        (0.1, 1, 30, 3, 3),  # in floating point, slightly more than 3
        (1, 64, 10, 1, 1),
        (50, 16, 4000, 12500, 12500),
    ],
)
def test_epochs_are_so_many_steps(epochs, batch, units, plain, private):
    for enabled, steps in ((False, plain), (True, private)):
        settings = Sft(epochs=epochs, batch_size=batch, privacy=PrivacySettings(enabled=enabled))
        assert settings.steps(units=units) == steps
    assert Sft(max_steps=7).steps(units=units) == Reinforce(total_steps=7).steps(units=units) == 7


def test_only_the_length_that_is_given_names_a_run():
    assert "max_steps" not in Sft(epochs=2, max_steps=5).numbers()
    assert "epochs" not in Sft(max_steps=5).numbers()
    assert Sft(epochs=2).numbers() == Sft(epochs=2.0).numbers()


def test_a_stage_trains_for_its_epochs(tmp_path, tiny_base, tiny_dataset):
    state = train(job_in(tmp_path, tiny_base, tiny_dataset, epochs=2, batch_size=32, eval_steps=50))
    assert (state["step"], state["examples_seen"], state["stopped_reason"]) == (4, 120, "max_steps")
    assert json.loads((tmp_path / "sft" / "state.json").read_text())["max_steps"] == 4


def test_a_warmup_longer_than_the_epochs_is_refused(tmp_path, tiny_base, tiny_dataset):
    job = job_in(tmp_path, tiny_base, tiny_dataset, epochs=2, batch_size=32, warmup_steps=5)
    with pytest.raises(UserError, match=r"sft\.warmup_steps: 5 .* 2 epochs of 60 units are 4 steps"):
        train(job)


def test_patience_ends_the_run_and_the_best_weights_are_kept(tmp_path, tiny_base, tiny_dataset, growing, one_key):
    privacy, target = growing
    job = job_in(tmp_path / "stopped", tiny_base, tiny_dataset, privacy=privacy, patience=3)
    objective = Distance(target)
    train_stage(job, lambda materials: objective)
    state = load_state(job.output)
    assert (state["step"], state["stopped_reason"]) == (BEST + 3, "early_stopping")
    assert (state["kept"]["step"], state["kept"]["val_loss"]) == (BEST, min(abs(n - target) for n in objective.norms))
    kept = sum(float(tensor.norm()) for tensor in state["model_state_dict"].values())
    assert kept == pytest.approx(objective.norms[BEST], rel=1e-6)
    metrics = stage_metrics(state)
    assert (metrics["total_steps"], metrics["kept"]["step"]) == (BEST + 3, BEST)
    if privacy.enabled:  # every step counts
        assert state["privacy"]["steps"] == state["privacy"]["events"][0]["steps"] == BEST + 3


def test_the_best_weights_are_kept_without_patience(tmp_path, tiny_base, tiny_dataset, growing, one_key):
    privacy, target = growing
    job = job_in(tmp_path, tiny_base, tiny_dataset, privacy=privacy, keep="best")
    train_stage(job, lambda materials: Distance(target))
    state = load_state(job.output)
    assert (state["step"], state["stopped_reason"], state["kept"]["step"]) == (12, "max_steps", BEST)


@pytest.mark.parametrize("polls", [9, 14, 19, 22])
def test_an_early_stop_is_the_same_after_an_interruption(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, growing, one_key, polls
):
    privacy, target = growing
    whole, broken = (
        job_in(tmp_path / name, tiny_base, tiny_dataset, privacy=privacy, patience=3) for name in ("whole", "broken")
    )
    train_stage(whole, lambda materials: Distance(target))
    with monkeypatch.context() as patch:
        interrupt_after(patch, polls)
        with pytest.raises(Interrupted):
            train_stage(broken, lambda materials: Distance(target))
    train_stage(broken, lambda materials: Distance(target))
    assert comparable(load_state(broken.output)) == comparable(load_state(whole.output))
    # A run that has stopped early stays finished, and writes the same file again.
    broken.output.unlink()
    train_stage(broken, lambda materials: Distance(target))
    assert comparable(load_state(broken.output)) == comparable(load_state(whole.output))


def test_several_processes_stop_together(tmp_path, tiny_base, tiny_dataset, growing, one_key):
    privacy, target = growing
    job = job_in(tmp_path, tiny_base, tiny_dataset, privacy=privacy, patience=3)
    ended = train_as(2, job, lambda materials: Distance(target), folder=tmp_path / "said")
    assert ended.codes == [0, 0], ended.said
    state = load_state(job.output)
    assert (state["step"], state["stopped_reason"], state["kept"]["step"]) == (BEST + 3, "early_stopping", BEST)


def test_validation_that_measures_nothing_cannot_decide(tmp_path, tiny_base, tiny_dataset):
    class Nothing(SupervisedFineTuning):
        def validate(self, model, batches, *, check=lambda: None):
            return {"val_loss": float("nan")}

    with pytest.raises(UserError, match="validation of step 0 could not measure val_loss"):
        train_stage(job_in(tmp_path, tiny_base, tiny_dataset, patience=3), lambda materials: Nothing(max_seq_len=64))


@pytest.mark.parametrize(
    ("less_is_better", "values", "best", "over"),
    [
        (True, [1.0, 9.0, 8.0, 8.0, 7.0], 4, False),  # the start does not count
        (True, [1.0, 8.0, 9.0, 8.0], 1, True),  # an equal value is not better
        (False, [9.0, 1.0, 2.0, 1.5, 1.9], 2, True),
        (True, [1.0], None, False),
    ],
)
def test_the_best_of_a_history(less_is_better, values, best, over):
    validation = BestValidation(figure="val_loss", less_is_better=less_is_better, patience=2)
    history = [{"step": step, "val_loss": value} for step, value in enumerate(values)]
    line = validation.line(history)
    assert (line and line["step"]) == best
    assert validation.is_over(history) is over


def test_rates_fall_over_the_steps_of_the_epochs(tmp_path, tiny_base, tiny_dataset):
    state = train(job_in(tmp_path, tiny_base, tiny_dataset, epochs=2, batch_size=30, schedule="linear", eval_steps=50))
    rates = [line["learning_rate"] for line in state["history"] if "loss" in line]
    assert rates == pytest.approx([5e-3 * (1 - step / 4) for step in range(4)])
    assert torch.tensor(rates).diff().lt(0).all()
