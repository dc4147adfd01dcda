"""Every adapter kind from training to an answer, on a base of linear layers and on one of Conv1D."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch

from sealed_experts.cli.main import main
from sealed_experts.evaluation.experts import evaluate_expert
from sealed_experts.evaluation.job import AnswerSampling, EvaluationJob
from sealed_experts.files.canonical import read_json
from sealed_experts.metrics.loss import Loss
from sealed_experts.metrics.reward import Reward
from sealed_experts.models.adapters import KINDS, PREFIX
from sealed_experts.models.attachment import attach_adapter, load_adapter_state
from sealed_experts.models.classes import CAUSAL
from sealed_experts.models.loading import load_base, load_tokenizer
from sealed_experts.moe.composition import check_composition
from sealed_experts.moe.engine import Engine
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.interruption import Interrupted
from sealed_experts.training.peft_folder import write_peft_folder
from sealed_experts.training.stage import train_stage
from sealed_experts.training.summary import stage_metrics
from tests.attacks import building
from tests.kinds import tiny_base as plain_base
from tests.mixtures import Workshop
from tests.rewards import Vowels
from tests.tiny import build_tiny_base
from tests.unit.models.test_kinds import CASES, made
from tests.unit.training.test_reinforce_stage import objective, rl_job
from tests.unit.training.test_stage import (
    PLAIN,
    PRIVATE,
    comparable,
    interrupt_after,
    make_job,
    share_key,
    supervised,
)

STEPS = {"max_steps": 4, "eval_steps": 2, "eval_examples": 6, "max_seq_len": 120, "token_budget": 300}
QUESTION = "What is a loan?"


class Journey:
    """An expert of one kind on one base, trained under privacy by both stages, and exported."""

    def __init__(self, folder: Path, kind: str, base: str, dataset: Path) -> None:
        self.folder, self.adapter, self.dataset = folder, made(kind, base), dataset
        self.base = build_tiny_base(folder / "base", model=plain_base(base))
        self.sft = self.job(PRIVATE, folder)
        train_stage(self.sft, supervised)
        self.rl = rl_job(folder, self.sft, total_steps=2)
        train_stage(self.rl, objective(self.rl))
        self.peft = folder / "peft"
        self.peft.mkdir()
        self.export(self.rl.output)

    def job(self, privacy, folder):
        job = make_job(folder, self.base, self.dataset, privacy=privacy, **STEPS)
        return dataclasses.replace(job, adapter=self.adapter)

    def export(self, adapter: Path) -> None:
        config, weights = self.peft / "adapter_config.json", self.peft / "adapter_model.safetensors"
        write_peft_folder(adapter, base_folder=self.base.parent, config=config, weights=weights)

    @functools.cached_property
    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.peft.iterdir()}

    def package(self) -> bytes:
        base = read_json(self.base)
        return building.package(
            settings=building.run(adapter=self.adapter),
            metrics=building.metrics(base_digest=base["digest"]),
            base=base,
            base_config=read_json(self.base.parent / "config.json"),
            adapter_config=self.files["adapter_config.json"],
            adapter_weights=self.files["adapter_model.safetensors"],
        )

    def trained(self) -> torch.nn.Module:
        base = load_base(self.base.parent, device=torch.device("cpu")).model
        model = attach_adapter(base, self.adapter, seed=0)
        load_adapter_state(model, load_state(self.rl.output)["model_state_dict"])
        return model.eval()


@pytest.fixture(scope="module", params=CASES, ids=" on ".join)
def journey(request, tmp_path_factory, tiny_dataset):
    return Journey(tmp_path_factory.mktemp("journey"), *request.param, tiny_dataset)


pytestmark = pytest.mark.xdist_group("journeys")  # they share the runs of one fixture


@pytest.mark.parametrize("privacy", [PRIVATE, PLAIN], ids=["private", "plain"])
def test_an_interrupted_run_ends_bit_for_bit_like_a_whole_one(journey, privacy, tmp_path, monkeypatch):
    whole, broken = journey.sft, journey.job(privacy, tmp_path / "broken")
    if privacy is PLAIN:
        whole = journey.job(privacy, tmp_path / "whole")
        train_stage(whole, supervised)
    else:
        share_key(broken, whole)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interrupted):
            train_stage(broken, supervised)
    train_stage(broken, supervised)
    state = load_state(broken.output)
    assert comparable(state) == comparable(load_state(whole.output))
    assert state["weight_change"] > 0


def test_both_stages_spent_privacy_and_moved_the_weights(journey):
    first, second = load_state(journey.sft.output), load_state(journey.rl.output)
    assert 0 < first["privacy"]["epsilon"] < second["privacy"]["epsilon"]
    before, after = first["model_state_dict"], second["model_state_dict"]
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_the_exported_folder_answers_in_plain_peft_as_the_trainers_model(journey):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(journey.base.parent), journey.peft)
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, journey.trained()(input_ids=ids).logits, atol=1e-5)


def test_its_package_is_verified_alone_and_with_its_base(journey, tmp_path, capsys):
    path = tmp_path / "expert.tgsp"
    path.write_bytes(journey.package())
    building.trust_key(building.key().public.raw, name="bank")
    assert main(["verify", str(path), "--base", str(journey.base.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits_base"] == {"name": "tiny", "tensors_compared": True}
    assert found["adapter"]["kind"] == journey.adapter.kind
    assert found["adapter"]["settings"] == journey.adapter.facts()
    other = build_tiny_base(tmp_path / "other", model=plain_base("llama"))
    assert main(["verify", str(path), "--base", str(other.parent)]) == 4
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(f"adapter.settings.{name}: " in shown for name in journey.adapter.facts())


def test_a_base_of_other_shapes_is_refused(journey, tmp_path):
    """The digest alone would refuse it: here the manifest states the other base's."""
    from sealed_experts.packages.base_modules import check_fits, read_base
    from sealed_experts.packages.errors import PackageError
    from sealed_experts.packages.tgsp.package import open_bytes

    package, base = open_bytes(journey.package(), trust=building.trust()), read_base(journey.base.parent)
    check_fits(package, base, where=tmp_path)
    assert base.shapes is not None
    wider = {module: sizes and (sizes[0] + 8, sizes[1] + 8) for module, sizes in base.shapes.items()}
    with pytest.raises(PackageError, match=rf"{PREFIX}.* has the shape .*; the base needs"):
        check_fits(package, dataclasses.replace(base, shapes=wider), where=tmp_path)


def test_it_answers_in_a_mixture_beside_a_lora_expert(journey, tmp_path):
    workshop = Workshop(tmp_path / "results", journey.base)
    workshop.make_data()
    config, weights = journey.files["adapter_config.json"], journey.files["adapter_model.safetensors"]
    workshop.make_expert("banking_expert", config=config, weights=weights)
    for seed, name in enumerate(("investment_expert", "shared_attention"), 2):
        workshop.make_expert(name, seed=seed)
    workshop.assemble()
    assert check_composition(workshop.config, trust=load_trust(), device="cpu")["ok"]
    engine = Engine.load(workshop.config, trust=load_trust(), device="cpu")
    answer = engine.answer(QUESTION, max_new_tokens=6)
    assert answer.expert == "banking_expert"
    model, logits = journey.trained(), engine.experts.logits("banking_expert", QUESTION, answer=answer.text)
    tokenizer = load_tokenizer(journey.base.parent)
    ids = tokenizer(f"{prompt()}{answer.text}", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
    assert torch.allclose(logits[: len(expected)], expected[: len(logits)], atol=1e-5)


def prompt() -> str:
    from sealed_experts.data.templates import prompt_text

    return prompt_text(template="alpaca", instruction=QUESTION)


def test_the_evaluation_has_the_stages_own_numbers(journey):
    run = EvaluationJob(
        expert=journey.sft.expert,
        dataset="tiny",
        seed=journey.sft.seed,
        template="alpaca",
        device="cpu",
        adapter=journey.adapter,
        model_class=CAUSAL,
        model_options={},
        stages=("sft", "reinforce"),
        eval_examples=6,
        max_seq_len=120,
        token_budget=300,
        threads=1,
        metrics=(Loss(), Reward()),
        sampling=AnswerSampling(
            **{name: getattr(journey.rl.settings, name) for name in ("max_new_tokens", "temperature", "top_p")},
            answers=1,
            max_seq_len=120,
        ),
        rewarded=journey.rl.settings,
    )
    adapters = [journey.sft.output, journey.rl.output]
    val, train = (journey.dataset / f"{side}.jsonl" for side in ("val", "train"))
    evaluated = evaluate_expert(run, base=journey.base, val=val, train=[train], adapters=adapters, reward=Vowels())
    found = evaluated.content["models"]
    after = stage_metrics(load_state(journey.rl.output))
    assert found["reinforce"]["metrics"]["reward"]["mean"] == after["mean_reward_after"]
    assert found["reinforce"]["kl"] == after["kl_after"] > 0
    assert found["sft"]["kl"] > 0
    before = stage_metrics(load_state(journey.sft.output))
    assert before["adapter"]["kind"] == journey.adapter.kind
    loss = found["base"]["metrics"]["loss"]["mean"]
    assert (loss == before["first_val_loss"]) is KINDS[journey.adapter.kind].starts_as_base
