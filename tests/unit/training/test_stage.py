"""A stage of training, end to end on a tiny model: exact resume, private accounts, and every refusal."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch

from sealed_experts.data.records import read_records, write_records
from sealed_experts.errors import UserError
from sealed_experts.models import memory
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.privacy.engines import hooks, vmap
from sealed_experts.privacy.mechanism import GradientMechanism
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.fields import plain
from sealed_experts.training import loop as loop_module
from sealed_experts.training.checkpoints import CheckpointFolder, load_state
from sealed_experts.training.interruption import Interrupted, Interruption
from sealed_experts.training.job import StageJob
from sealed_experts.training.objectives.sft import Sft, SupervisedFineTuning
from sealed_experts.training.samplers import PoissonSampler
from sealed_experts.training.stage import train_stage
from sealed_experts.training.summary import stage_metrics
from tests.measured import MEASURED

PRIVATE = PrivacySettings(noise_multiplier=1.0, max_grad_norm=0.5, target_epsilon=50.0, delta=1e-3)
PLAIN = PrivacySettings(enabled=False)


def supervised(materials):
    return SupervisedFineTuning(max_seq_len=64)


def make_job(folder, base, dataset, *, privacy=PRIVATE, **changes):
    settings = Sft(
        **{
            "learning_rate": 5e-3,
            "batch_size": 8,
            "max_steps": 6,
            "max_seq_len": 64,
            "eval_steps": 3,
            "log_steps": 1,
            "checkpoint_steps": 2,
            "token_budget": 200,
            "threads": 1,
            "privacy": privacy,
            **changes,
        }
    )
    return StageJob(
        stage="sft",
        expert="tiny_expert",
        seed=3,
        device="cpu",
        template="alpaca",
        adapter=Lora(rank=2, alpha=4),
        settings=settings,
        computed={"training": settings.part(operation=False)},
        base=base,
        train=dataset / "train.jsonl",
        val=dataset / "val.jsonl",
        stats=dataset / "stats.json",
        start=None,
        checkpoints=folder / "sft" / "checkpoints",
        output=folder / "sft" / "adapter_final.pt",
    )


def train(job):
    train_stage(job, supervised)
    return load_state(job.output)


def comparable(value):
    """Everything but measured times."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in MEASURED}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def interrupt_after(monkeypatch, polls):
    """Make the run stop after the loop has checked `polls` times."""
    seen = iter(range(10**9))
    monkeypatch.setattr(
        Interruption, "reason", property(lambda self: "asked by a test" if next(seen) >= polls else None)
    )


def share_key(job, other):
    """Give `job` the key that `other` drew, as if it were the same run."""
    (source,) = other.checkpoints.glob("*/key")
    target = job.checkpoints / source.parent.name / "key"
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)


@pytest.fixture(scope="module", params=[PRIVATE, PLAIN], ids=["private", "plain"])
def whole(request, tmp_path_factory, tiny_base, tiny_dataset):
    """An uninterrupted run, and its adapter file."""
    job = make_job(tmp_path_factory.mktemp("whole"), tiny_base, tiny_dataset, privacy=request.param)
    return job, train(job)


# tests/faults interrupts at every file operation and at random moments.
@pytest.mark.xdist_group("stage")
@pytest.mark.parametrize("polls", [1, 5, 14])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, whole, polls
):
    privacy = whole[0].settings.privacy
    broken = make_job(tmp_path / "broken", tiny_base, tiny_dataset, privacy=privacy)
    if privacy.enabled:
        share_key(broken, whole[0])
    with monkeypatch.context() as patch:
        interrupt_after(patch, polls)
        with pytest.raises(Interrupted):
            train_stage(broken, supervised)
    assert json.loads((broken.output.parent / "state.json").read_text())["state"] == "interrupted"
    assert comparable(train(broken)) == comparable(whole[1])
    lines = [json.loads(line) for line in (broken.output.parent / "metrics.jsonl").read_text().splitlines()]
    assert comparable(lines) == comparable(whole[1]["history"])


def test_the_engine_is_the_one_that_the_kind_names_for_the_base(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    asked, used = [], []

    def engine(self, base):
        asked.append(base["model_type"])
        return "vmap"

    for module in (hooks, vmap):
        original = module.Chosen.per_unit

        def counted(self, batch, original=original, name=module.__name__):
            used.append(name.rpartition(".")[2])
            return original(self, batch)

        monkeypatch.setattr(module.Chosen, "per_unit", counted)
    monkeypatch.setattr(Lora, "engine", engine)
    monkeypatch.setattr(memory, "total_memory", lambda device: 1)  # this would ask for recomputation
    state = train(make_job(tmp_path / "private", tiny_base, tiny_dataset, max_steps=1))
    assert (set(asked), set(used)) == ({"qwen2"}, {"vmap"})
    assert state["environment"]["gradient_checkpointing"] is False
    with pytest.raises(UserError, match="gradient_checkpointing"):
        train(make_job(tmp_path / "on", tiny_base, tiny_dataset, gradient_checkpointing="on"))
    plain = make_job(tmp_path / "plain", tiny_base, tiny_dataset, privacy=PLAIN, max_steps=1)
    assert train(plain)["environment"]["gradient_checkpointing"] is True, "without privacy there is no engine"


def test_release_mode_draws_a_new_key_for_every_run(tmp_path, tiny_base, tiny_dataset):
    one, two = (train(make_job(tmp_path / name, tiny_base, tiny_dataset)) for name in ("one", "two"))
    assert one["privacy"]["key_id"] != two["privacy"]["key_id"]
    assert comparable(one["model_state_dict"]) != comparable(two["model_state_dict"])
    assert one["privacy"]["epsilon"] == two["privacy"]["epsilon"] > 0


def test_reproducible_mode_repeats_itself_and_claims_nothing(tmp_path, tiny_base, tiny_dataset):
    privacy = PRIVATE.replace(mode="reproducible")
    one, two = (train(make_job(tmp_path / name, tiny_base, tiny_dataset, privacy=privacy)) for name in ("one", "two"))
    assert comparable(one) == comparable(two)
    assert one["privacy"]["epsilon"] is None
    assert "no privacy against" in one["privacy"]["reason"]
    other = dataclasses.replace(
        make_job(tmp_path / "other", tiny_base, tiny_dataset, privacy=privacy), expert="another"
    )
    assert comparable(train(other)["model_state_dict"]) != comparable(one["model_state_dict"])


def test_the_budget_stops_the_run_and_says_so(tmp_path, tiny_base, tiny_dataset):
    free = train(make_job(tmp_path / "free", tiny_base, tiny_dataset))
    epsilons = [line["epsilon"] for line in free["history"] if "loss" in line]
    tight = PRIVATE.replace(target_epsilon=(epsilons[2] + epsilons[3]) / 2)
    state = train(make_job(tmp_path / "tight", tiny_base, tiny_dataset, privacy=tight))
    assert (state["step"], state["stopped_reason"]) == (3, "privacy_budget")
    assert state["privacy"]["epsilon"] == epsilons[2] <= tight.target_epsilon
    with pytest.raises(UserError, match="the first step would bring"):
        train(make_job(tmp_path / "none", tiny_base, tiny_dataset, privacy=PRIVATE.replace(target_epsilon=1e-3)))


def test_auto_noise_ends_at_the_target(tmp_path, tiny_base, tiny_dataset):
    privacy = PRIVATE.replace(noise_multiplier="auto", target_epsilon=4.0)
    state = train(make_job(tmp_path, tiny_base, tiny_dataset, privacy=privacy))
    assert state["stopped_reason"] == "max_steps"
    assert 3.9 < state["privacy"]["epsilon"] <= 4.0


def test_an_edited_setting_never_meets_the_old_checkpoints(tmp_path, tiny_base, tiny_dataset):
    train(make_job(tmp_path, tiny_base, tiny_dataset, max_steps=4))
    state = train(make_job(tmp_path, tiny_base, tiny_dataset, max_steps=4, learning_rate=1e-3))
    assert [line["step"] for line in state["history"] if "loss" in line] == [1, 2, 3, 4]
    assert len(list((tmp_path / "sft" / "checkpoints").glob("*/key"))) == 2


def test_an_operational_setting_keeps_the_old_checkpoints(tmp_path, tiny_base, tiny_dataset, capfd):
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    train(job)
    job.output.unlink()
    train(make_job(tmp_path, tiny_base, tiny_dataset, log_steps=5, checkpoint_steps=100, keep_checkpoints=1))
    assert "resumed after step 6 of 6" in capfd.readouterr().out


def test_without_privacy_it_learns_and_metrics_say_what_happened(tmp_path, tiny_base, tiny_dataset):
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=PLAIN, max_steps=40, learning_rate=2e-2)
    metrics = stage_metrics(train(job))
    assert metrics["final_val_loss"] < metrics["first_val_loss"] - 0.1  # on other seeds it falls by 0.19 to 0.28
    assert metrics["best_val_loss"] == min(line["val_loss"] for line in metrics["history"]["validation"])
    assert metrics["examples_seen"] == 5 * 60  # the last batch of an epoch holds the remaining units
    assert metrics["total_steps"] == 40
    assert metrics["privacy"]["enabled"] is False
    assert metrics["privacy"]["epsilon"] is None


def test_the_first_steps_equal_pytorchs_own_adamw(tmp_path, tiny_base, tiny_dataset):
    """One step without privacy, compared with plain autograd and AdamW on the same batch."""
    from sealed_experts.models.attachment import adapter_state, attach_adapter, trainable_parameters
    from sealed_experts.models.loading import load_base
    from sealed_experts.training.samplers import ShuffledSampler

    drawn = []
    original = ShuffledSampler.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShuffledSampler, "draw", lambda self, step: drawn.append(original(self, step)) or drawn[-1])
        state = train(make_job(tmp_path, tiny_base, tiny_dataset, privacy=PLAIN, max_steps=1))
    base = load_base(tiny_base.parent, device=torch.device("cpu"))
    model = attach_adapter(base.model, Lora(rank=2, alpha=4), seed=3)
    records = read_records(tiny_dataset / "train.jsonl")
    losses = []
    for record in (records[index] for index in drawn[0]):
        context = f"### Input:\n{record.input}\n\n" if record.input else ""
        prompt = base.tokenizer(f"### Instruction:\n{record.instruction}\n\n{context}### Response:\n")["input_ids"]
        ids = [*prompt, *base.tokenizer(record.output)["input_ids"], base.tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        losses.append(model(input_ids=torch.tensor([ids[:64]]), labels=torch.tensor([labels[:64]])).loss)
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=5e-3, weight_decay=0.01)
    (sum(losses) / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(trainable_parameters(model), 1.0)
    optimizer.step()
    for name, tensor in adapter_state(model).items():
        torch.testing.assert_close(state["model_state_dict"][name], tensor, rtol=1e-3, atol=1e-5)


def test_an_empty_draw_is_a_step_like_any_other(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    monkeypatch.setattr(PoissonSampler, "draw", lambda self, step: np.zeros(0, dtype=np.int64))
    state = train(make_job(tmp_path, tiny_base, tiny_dataset, max_steps=2))
    lines = [line for line in state["history"] if "loss" in line]
    assert [(line["loss"], line["examples_seen"], line["tokens_seen"]) for line in lines] == [(None, 0, 0)] * 2
    assert state["privacy"]["events"][0]["steps"] == 2
    assert state["weight_change"] > 0  # only noise


def test_a_unit_of_many_rows_gives_one_row_a_step(tmp_path, tiny_base, tiny_dataset):
    folder = tmp_path / "data"
    folder.mkdir()
    records = read_records(tiny_dataset / "train.jsonl")
    owned = [dataclasses.replace(record, unit=f"customer-{index % 10}") for index, record in enumerate(records)]
    write_records(folder / "train.jsonl", owned)
    write_records(folder / "val.jsonl", read_records(tiny_dataset / "val.jsonl"))
    (folder / "stats.json").write_text(json.dumps({"unit": "customer", "digest": "1" * 64}))
    privacy = PRIVATE.replace(delta=1e-2)
    state = train(make_job(tmp_path, tiny_base, folder, batch_size=5, privacy=privacy))
    assert (state["privacy"]["units"], state["privacy"]["unit"]) == (10, "customer")
    assert state["privacy"]["sample_rate"] == 0.5
    assert state["examples_seen"] <= 10 * 6


def test_an_expected_batch_as_large_as_the_data_is_refused(tmp_path, tiny_base, tiny_dataset):
    with pytest.raises(UserError, match="must be smaller than the data"):
        train(make_job(tmp_path, tiny_base, tiny_dataset, batch_size=60))


def test_a_changed_base_is_refused(tmp_path, tiny_base, tiny_dataset):
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(tiny_base.parent, copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        train(make_job(tmp_path, copy / "base.json", tiny_dataset))


def test_a_sequence_longer_than_the_context_is_refused(tmp_path, tiny_base, tiny_dataset):
    with pytest.raises(UserError, match="context of 256 tokens"):
        train(make_job(tmp_path, tiny_base, tiny_dataset, max_seq_len=300))


def test_prompts_that_leave_no_room_for_any_answer_are_refused(tmp_path, tiny_base, tiny_dataset):
    with pytest.raises(UserError, match="leaves room for an answer"):
        train(make_job(tmp_path, tiny_base, tiny_dataset, max_seq_len=8))


def test_an_adapter_that_does_not_move_is_an_error(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(UserError, match="did not change"):
        train(make_job(tmp_path, tiny_base, tiny_dataset))
    assert json.loads((tmp_path / "sft" / "state.json").read_text())["state"] == "failed"


def test_weights_that_stop_being_finite_end_the_run_and_keep_the_checkpoint(
    tmp_path, tiny_base, tiny_dataset, monkeypatch
):
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    original = loop_module.learning_rate
    monkeypatch.setattr(loop_module, "learning_rate", lambda **k: float("inf") if k["step"] == 4 else original(**k))
    with pytest.raises(UserError, match="step 4: the weights became infinite or NaN"):
        train(job)
    assert not job.output.exists()
    assert sorted(path.name for path in job.checkpoints.glob("*/*.pt")) == ["checkpoint_step_2.pt"]


@pytest.mark.parametrize("where", ["batches", "optimizer", "validation"])
def test_running_out_of_memory_keeps_a_whole_state_and_says_what_to_change(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, where
):
    """In the middle of an optimizer step, a save would mix two steps under one noise key."""
    whole = make_job(tmp_path / "whole", tiny_base, tiny_dataset)
    expected = train(whole)
    job = make_job(tmp_path / "broken", tiny_base, tiny_dataset)
    share_key(job, whole)
    owner, name, call = {
        "batches": (SupervisedFineTuning, "prepare", 6),
        "optimizer": (torch.optim.AdamW, "step", 4),
        "validation": (SupervisedFineTuning, "validate", 2),
    }[where]
    original = getattr(owner, name)
    calls = iter(range(1, 1000))

    def crowded(*arguments, **keywords):
        result = original(*arguments, **keywords)
        if next(calls) == call:
            raise torch.OutOfMemoryError("out of memory")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crowded)
        with pytest.raises(UserError, match=r"ran out of memory.*token_budget"):
            train(job)
    newest = max(int(path.stem.rpartition("_")[2]) for path in job.checkpoints.glob("*/*.pt"))
    assert newest == {"batches": 3, "optimizer": 2, "validation": 3}[where]
    assert comparable(train(job)) == comparable(expected)


def test_settled_noise_and_steps_are_part_of_the_fingerprint(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    """`auto` may give another result later; then the old key must not be used again."""
    from sealed_experts.training import stage as stage_module

    privacy = PRIVATE.replace(noise_multiplier="auto", target_epsilon=4.0)
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=privacy)
    first = train(job)
    original = stage_module.plan_stage

    def louder(*arguments, **keywords):
        plan = original(*arguments, **keywords)
        return dataclasses.replace(plan, noise_multiplier=1.1 * plan.noise_multiplier)

    monkeypatch.setattr(stage_module, "plan_stage", louder)
    assert train(job)["privacy"]["key_id"] != first["privacy"]["key_id"]


def test_another_environment_starts_again_and_says_why(tmp_path, tiny_base, tiny_dataset, capfd):
    train(make_job(tmp_path, tiny_base, tiny_dataset, max_steps=2))
    train(make_job(tmp_path, tiny_base, tiny_dataset, max_steps=2, token_budget=100))
    assert "with another token_budget; they cannot be resumed here" in capfd.readouterr().err


def test_private_training_with_recomputed_activations_gives_the_same_adapter(tmp_path, tiny_base, tiny_dataset):
    privacy = PRIVATE.replace(mode="reproducible")
    state = train(
        make_job(tmp_path, tiny_base, tiny_dataset, privacy=privacy, gradient_checkpointing="on", max_steps=2)
    )
    assert (state["step"], state["environment"]["gradient_checkpointing"]) == (2, True)


def test_a_lost_journal_is_told_and_never_replaced(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    train(job)
    (journal,) = job.checkpoints.glob("*/journal")
    journal.unlink()
    with pytest.raises(UserError, match="journal of this run goes up to step 0, but its checkpoint is of step 6"):
        train(job)


def test_a_second_trainer_is_refused_by_name(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    from sealed_experts.files import locks

    job = make_job(tmp_path, tiny_base, tiny_dataset)
    with locks.folder_lock(job.checkpoints):
        monkeypatch.setattr(locks, "acquire", _impatient(locks.acquire))
        with pytest.raises(UserError, match=f"process {os.getpid()} on "):
            train(job)


def _impatient(acquire):
    return lambda descriptor, path, wait, check: acquire(descriptor, path, 0.3, check)


def test_every_step_is_in_the_journal_before_its_noise_is_made(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    original = GradientMechanism.release
    seen = []

    def release(self, *, step):
        (journal,) = job.checkpoints.glob("*/journal")
        seen.append((step, len(journal.read_bytes().splitlines()) - 1))  # except the header
        return original(self, step=step)

    monkeypatch.setattr(GradientMechanism, "release", release)
    train(job)
    assert seen == [(step, step) for step in range(1, 7)]


def test_the_secret_key_is_in_no_file_but_its_own(tmp_path, tiny_base, tiny_dataset):
    job = make_job(tmp_path, tiny_base, tiny_dataset)
    train(job)
    (path,) = job.checkpoints.glob("*/key")
    key = path.read_bytes()
    for other in tmp_path.rglob("*"):
        if other.is_file() and other != path:
            content = other.read_bytes()
            assert key not in content
            assert key.hex().encode() not in content


def test_a_later_stage_starts_from_the_earlier_one_and_pays_jointly(tmp_path, tiny_base, tiny_dataset):
    first = make_job(tmp_path / "first", tiny_base, tiny_dataset)
    one = train(first)
    second = dataclasses.replace(
        make_job(tmp_path / "second", tiny_base, tiny_dataset), start=first.output, stage="second"
    )
    two = train(second)
    assert [event["stage"] for event in two["privacy"]["events"]] == ["sft", "second"]
    assert one["privacy"]["epsilon"] < two["privacy"]["epsilon"] < 2 * one["privacy"]["epsilon"]
    assert list(two["privacy"]["stage_epsilon"]) == ["sft", "second"]
    first_val = next(line["val_loss"] for line in two["history"] if "val_loss" in line)
    last_val = [line["val_loss"] for line in one["history"] if "val_loss" in line][-1]
    assert first_val == pytest.approx(last_val, abs=1e-6)


def test_metrics_carry_what_the_contract_names(tmp_path, tiny_base, tiny_dataset):
    metrics = stage_metrics(train(make_job(tmp_path, tiny_base, tiny_dataset)))
    names = """adapter_name model adapter total_steps stopped_reason first_val_loss final_val_loss best_val_loss
        final_loss total_time_seconds examples_seen tokens_seen dataset_size data_digest base_digest seed privacy"""
    assert set(names.split()) <= metrics.keys()
    privacy = """enabled mode unit neighbouring sampling sample_rate noise_multiplier max_grad_norm steps accountant
        delta target_epsilon epsilon"""
    assert set(privacy.split()) <= metrics["privacy"].keys()
    assert {"kind", "rank", "alpha", "target_modules"} <= metrics["adapter"].keys()
    assert plain(metrics) == json.loads(json.dumps(metrics))


def test_checkpoints_are_saved_by_the_clock_too(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    saved = []
    original = CheckpointFolder.save
    monkeypatch.setattr(
        CheckpointFolder, "save", lambda self, state, *, step: saved.append(step) or original(self, state, step=step)
    )
    train(make_job(tmp_path / "often", tiny_base, tiny_dataset, checkpoint_steps=100, checkpoint_minutes=1e-9))
    assert saved == [1, 2, 3, 4, 5, 6]
    saved.clear()
    train(make_job(tmp_path / "seldom", tiny_base, tiny_dataset, checkpoint_steps=100, checkpoint_minutes=100))
    assert saved == [6]


def test_a_signal_during_validation_is_heeded_within_a_batch_and_nothing_of_it_is_lost(
    tmp_path, tiny_base, tiny_dataset, monkeypatch
):
    """A bug: the signal waited for the end of the validation, which can take minutes."""
    from sealed_experts.training import response

    jobs = [
        make_job(tmp_path / name, tiny_base, tiny_dataset, privacy=PLAIN, token_budget=100, max_steps=3)
        for name in ("whole", "broken")
    ]
    expected = train(jobs[0])
    original, batches = response.response_logits, []

    def logits(model, batch):
        if not torch.is_grad_enabled():
            batches.append(batch)
            if len(batches) > 1 and batch is batches[0]:  # the second validation
                os.kill(os.getpid(), signal.SIGTERM)
        return original(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(response, "response_logits", logits)
        with pytest.raises(Interrupted, match="received SIGTERM; saved after step 3 of 3"):
            train(jobs[1])
    assert batches[-1] is batches[0]  # no batch came after it
    assert comparable(train(jobs[1])) == comparable(expected)
