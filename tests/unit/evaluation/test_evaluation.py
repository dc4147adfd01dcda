"""The evaluation of an expert: the stages' own numbers, before and after, and whether a gain counts."""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sealed_experts.configuration.jobs import evaluation_operation, evaluation_settings
from sealed_experts.configuration.resolution import load
from sealed_experts.data.records import read_records, write_records
from sealed_experts.errors import UserError
from sealed_experts.evaluation.bootstrap import Resampling
from sealed_experts.evaluation.experts import evaluate_expert, sample_indices
from sealed_experts.evaluation.gains import gain_checks, verdict
from sealed_experts.evaluation.job import EvaluationJob, evaluation_from_json
from sealed_experts.evaluation.measuring import Losses, Measured, gain_figures, model_figures, record_losses
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.loading import load_base
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.rewards import Score
from sealed_experts.training.batches import physical_batches
from sealed_experts.training.checkpoints import load_state, save_state
from sealed_experts.training.dataset import UnitDataset
from sealed_experts.training.held_out import HeldOutAnswers
from sealed_experts.training.job import StageJob
from sealed_experts.training.objectives.reinforce import PolicyGradient, Reinforce
from sealed_experts.training.objectives.sft import Sft, SupervisedFineTuning
from sealed_experts.training.stage import train_stage
from sealed_experts.training.summary import stage_metrics
from tests.evaluations import made_evaluation, without_reward
from tests.tiny import build_tiny_base, build_tiny_dataset

SCRIPT = Path(__file__).parents[3] / "scripts" / "evaluate_expert.py"
ADAPTER = Lora(rank=2, alpha=4)
COMMON = {"max_seq_len": 110, "token_budget": 300, "threads": 1, "privacy": PrivacySettings(enabled=False)}
SFT = Sft(learning_rate=5e-3, batch_size=8, max_steps=3, **COMMON)
REINFORCE = Reinforce(
    learning_rate=2e-2, rollout_batch_size=8, total_steps=3, max_new_tokens=8, temperature=0.9, top_p=0.95, **COMMON
)


class Letters:
    """Scores an answer by its vowels and its length: two axes that differ from prompt to prompt."""

    name = "letters"
    weights = {"vowels": 0.75, "length": 0.25}  # noqa: RUF012

    def score(self, prompt: str, response: str) -> Score:
        axes = {
            "vowels": sum(letter in "aeiou" for letter in response) / max(1, len(response)),
            "length": min(1.0, len(response) / len(prompt)),
        }
        return Score(sum(self.weights[name] * value for name, value in axes.items()), axes)


class Run:
    """A trained expert, and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, build_tiny_base(folder / "base")
        self.data = build_tiny_dataset(folder / "data", records=40)
        self.sft, self.reinforce = folder / "sft" / "adapter_final.pt", folder / "rl" / "adapter_rl_final.pt"
        train_stage(
            self._job("sft", SFT, self.sft), lambda materials: SupervisedFineTuning(max_seq_len=SFT.max_seq_len)
        )
        train_stage(
            self._job("reinforce", REINFORCE, self.reinforce, start=self.sft),
            lambda materials: PolicyGradient(settings=REINFORCE, reward=Letters(), materials=materials),
        )

    def _job(self, stage: str, settings: Sft | Reinforce, output: Path, **start: Path) -> StageJob:
        return StageJob(
            stage=stage,
            expert="tiny_expert",
            seed=3,
            device="cpu",
            template="alpaca",
            adapter=ADAPTER,
            settings=settings,
            computed={"training": settings.part(operation=False)},
            base=self.base,
            train=self.data / "train.jsonl",
            val=self.data / "val.jsonl",
            stats=self.data / "stats.json",
            start=start.get("start"),
            checkpoints=output.parent / "checkpoints",
            output=output,
        )

    def settings(self, **changes: object) -> EvaluationJob:
        values = {
            "expert": "tiny_expert",
            "dataset": "tiny",
            "seed": 3,
            "template": "alpaca",
            "device": "cpu",
            "adapter": ADAPTER,
            "stages": ("sft", "reinforce"),
            "eval_examples": 256,
            "eval_answers": 1,
            "max_seq_len": 110,
            "token_budget": 300,
            "threads": 1,
            "sampling": REINFORCE,
        }
        return EvaluationJob(**{**values, **changes})  # type: ignore[arg-type]

    def evaluate(self, *, val: Path | None = None, adapters: list[Path] | None = None, **changes: object) -> dict:
        run = self.settings(**changes)
        return evaluate_expert(
            run,
            base=self.base,
            val=val or self.data / "val.jsonl",
            train=self.data / "train.jsonl",
            adapters=adapters or [self.sft, self.reinforce],
            reward=Letters() if run.sampling else None,
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def evaluation(run: Run) -> dict:
    return run.evaluate()


def test_the_numbers_are_the_stages_own(run: Run, evaluation: dict) -> None:
    sft, reinforce = stage_metrics(load_state(run.sft)), stage_metrics(load_state(run.reinforce))
    models = evaluation["models"]
    assert models["base"]["loss"] == sft["first_val_loss"]
    assert models["sft"]["loss"] == sft["final_val_loss"] == reinforce["first_val_loss"]
    assert models["reinforce"]["loss"] == reinforce["final_val_loss"]
    assert models["sft"]["reward"]["mean"] == reinforce["mean_reward_before"]
    assert models["reinforce"]["reward"]["mean"] == reinforce["mean_reward_after"]
    assert models["reinforce"]["kl"] == reinforce["kl_after"] > 0
    for figure in ("entropy", "response_tokens"):
        assert models["sft"][figure] == reinforce[f"{figure}_before"]
        assert models["reinforce"][figure] == reinforce[f"{figure}_after"]
    assert models["reinforce"]["truncated_share"] == reinforce["truncated_share_after"]
    for name, value in reinforce["axes_after"].items():
        assert models["reinforce"]["axes"][name]["mean"] == value


def test_each_record_has_its_own_loss(run: Run) -> None:
    """Against transformers' loss of each record alone, which takes the mean over its answer's tokens."""
    base = load_base(run.base.parent, device=torch.device("cpu"))
    records = read_records(run.data / "val.jsonl")
    dataset = UnitDataset.from_records(records, template="alpaca", tokenizer=base.tokenizer, max_seq_len=110)
    examples = dataset.rows()
    batches = physical_batches(examples, token_budget=300, pad_id=0, device=torch.device("cpu"))
    losses = record_losses(base.model, batches, records=len(examples))
    assert len(batches) > 1
    for example, total, count in zip(examples, losses.sums, losses.tokens, strict=True):
        ids = torch.tensor([example.ids])
        labels = ids.clone()
        labels[:, : example.prompt_length] = -100
        assert count == example.response_tokens
        assert total / count == pytest.approx(base.model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


def test_another_token_budget_moves_the_loss_by_rounding_only(run: Run, evaluation: dict) -> None:
    other = run.evaluate(token_budget=2000)
    for name, model in evaluation["models"].items():
        assert other["models"][name]["loss"] == pytest.approx(model["loss"], abs=1e-5)


def test_models_are_told_apart_and_compared_with_the_one_before(evaluation: dict) -> None:
    models = evaluation["models"]
    assert list(models) == ["base", "sft", "reinforce"]
    assert len({model["loss"] for model in models.values()}) == 3
    assert models["base"]["kl"] is None
    assert models["sft"]["kl"] > 0
    for model in models.values():
        assert model["perplexity"] == pytest.approx(math.exp(model["loss"]))
        assert model["perplexity_interval"]["low"] == pytest.approx(math.exp(model["loss_interval"]["low"]))
        assert model["loss_interval"]["low"] < model["loss"] < model["loss_interval"]["high"]


def test_gains_are_differences_over_the_same_prompts(evaluation: dict) -> None:
    models = evaluation["models"]
    assert [(gain["from"], gain["to"]) for gain in evaluation["gains"]] == [("base", "sft"), ("sft", "reinforce")]
    for gain in evaluation["gains"]:
        before, after = models[gain["from"]], models[gain["to"]]
        assert gain["loss"]["mean"] == pytest.approx(after["loss"] - before["loss"])
        assert gain["reward"]["mean"] == pytest.approx(after["reward"]["mean"] - before["reward"]["mean"])
        for name, value in gain["axes"].items():
            assert value["mean"] == pytest.approx(after["axes"][name]["mean"] - before["axes"][name]["mean"])


def test_it_says_how_it_was_measured(evaluation: dict) -> None:
    assert (evaluation["expert"], evaluation["dataset"]) == ("tiny_expert", "tiny")
    assert evaluation["records"] == {"held_out": 10, "prompts": 10, "units": 10}
    assert evaluation["sampling"] == {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 8, "answers": 1, "seed": 3}
    assert evaluation["reward"] == {"name": "letters", "weights": {"vowels": 0.75, "length": 0.25}}
    assert set(evaluation["checks"]) == {
        "kl_at_most_0.5",
        "loss_at_most_10_percent_worse",
        "reward_gain_above_zero",
    }


def test_samples_show_every_model_on_prompts_that_nobody_picked(run: Run, evaluation: dict) -> None:
    records = [(record.question, record.output) for record in read_records(run.data / "val.jsonl")]
    assert len(evaluation["samples"]) == 3
    assert evaluation["samples"][0]["prompt"] == records[0][0]
    for sample in evaluation["samples"]:
        assert (sample["prompt"], sample["reference"]["text"]) in records
        assert list(sample["answers"]) == ["base", "sft", "reinforce"]
        for answer in [sample["reference"], *sample["answers"].values()]:
            assert answer["reward"] == Letters().score(sample["prompt"], answer["text"]).value


def test_the_sample_rule() -> None:
    assert sample_indices([5, 5, 7, 5, 6, 9]) == [0, 2, 4]
    assert sample_indices([5, 5]) == [0]


def test_the_same_files_give_the_same_evaluation(run: Run, evaluation: dict) -> None:
    assert run.evaluate() == evaluation
    json.dumps(evaluation, allow_nan=False)


def test_without_a_reward_only_losses_are_measured(run: Run, evaluation: dict) -> None:
    plain = run.evaluate(stages=("sft",), sampling=None, adapters=[run.sft])
    assert list(plain["models"]) == ["base", "sft"]
    assert plain["models"]["sft"]["loss"] == evaluation["models"]["sft"]["loss"]
    assert plain["models"]["sft"]["reward"] is None
    assert (plain["reward"], plain["sampling"], plain["checks"], plain["samples"]) == (None, None, {}, [])
    assert plain["gains"][0]["reward"] is None
    assert verdict(plain) is None


def test_several_answers_to_a_prompt_are_other_answers_to_the_same_prompts(run: Run, evaluation: dict) -> None:
    several = run.evaluate(eval_answers=3)
    assert several["sampling"]["answers"] == 3
    assert several["records"] == evaluation["records"]
    assert several["samples"] == evaluation["samples"]  # of the first answers
    for name, one in evaluation["models"].items():
        three = several["models"][name]
        assert (three["loss"], three["loss_interval"]) == (one["loss"], one["loss_interval"])
        assert three["reward"]["mean"] != one["reward"]["mean"]


def answers(values: list[float], *, kl: float = 0.0) -> HeldOutAnswers:
    """One answer to each prompt, with these rewards."""
    rollouts = [
        SimpleNamespace(score=Score(value, {"tone": 1 - value}), response_tokens=8, truncated=False) for value in values
    ]
    return HeldOutAnswers(rollouts, kl=kl, entropy=None)  # type: ignore[arg-type]


def test_several_answers_to_a_prompt_count_as_one_prompt() -> None:
    """Twelve prompts with three answers each are twelve values, not 36: their means, to the last bit."""
    prompts = [number / 16 for number in range(12)]
    units = [number // 2 if number < 4 else number for number in range(12)]
    losses = Losses(1.0, [1.0] * 12, [1] * 12)
    # Sixteenths are exact, and so are their means.
    spread = [answers([value + step for value in prompts]) for step in (-0.25, 0.0, 0.25)]
    before, three, one = (
        Measured(losses, tuple(given)) for given in ([answers([0.5] * 12)] * 3, spread, [answers(prompts)])
    )
    resampling = Resampling(units, seed=3)
    figures, expected = (model_figures(model, resampling) for model in (three, one))
    assert (figures["reward"], figures["axes"]) == (expected["reward"], expected["axes"])
    assert figures["reward"]["low"] < figures["reward"]["mean"] < figures["reward"]["high"]
    gain, expected = (gain_figures(before, model, resampling) for model in (three, one))
    assert (gain["reward"], gain["axes"]) == (expected["reward"], expected["axes"])


def test_what_makes_a_record_hard_cancels_out_of_a_gain() -> None:
    """Records of every difficulty that all gain the same: the gain is known exactly, and the figures are not."""
    hard = [number / 16 for number in range(12)]
    before = Measured(Losses(1.0, hard, [1] * 12), (answers(hard),))
    after = Measured(Losses(0.75, [value - 0.25 for value in hard], [1] * 12), (answers([v + 0.125 for v in hard]),))
    resampling = Resampling(range(12), seed=3)
    gain = gain_figures(before, after, resampling)
    assert gain["loss"] == {"mean": -0.25, "low": -0.25, "high": -0.25}
    assert gain["reward"] == {"mean": 0.125, "low": 0.125, "high": 0.125}
    assert gain["axes"]["tone"] == {"mean": -0.125, "low": -0.125, "high": -0.125}
    figures = model_figures(after, resampling)
    assert figures["reward"]["low"] < figures["reward"]["mean"] < figures["reward"]["high"]


def test_a_prompts_reward_is_the_mean_of_its_answers() -> None:
    model = Measured(Losses(1.0, [1.0, 1.0], [1, 1]), (answers([0.1, 0.4], kl=0.2), answers([0.3, 0.5], kl=0.4)))
    assert model.rewards == pytest.approx([0.2, 0.45])
    assert model.axis("tone") == pytest.approx([0.8, 0.55])
    assert len(model.rollouts) == 4


def test_only_the_first_records_are_used_if_asked(run: Run, evaluation: dict) -> None:
    few = run.evaluate(eval_examples=4)
    assert few["records"]["held_out"] == 4
    assert few["models"]["sft"]["loss_interval"] == {"low": None, "high": None}
    assert few["models"]["sft"]["loss"] != evaluation["models"]["sft"]["loss"]
    assert not few["checks"]["reward_gain_above_zero"]
    assert "too few held-out prompts" in (verdict(few) or "")


def test_records_of_one_unit_stay_together(run: Run, tmp_path: Path) -> None:
    """The stages gather rows by unit: a sample's answers must still be those to its own prompt."""
    records = read_records(run.data / "val.jsonl")
    mixed = [dataclasses.replace(record, unit=f"unit {index % 3}") for index, record in enumerate(records)]
    write_records(tmp_path / "val.jsonl", mixed)
    result = run.evaluate(val=tmp_path / "val.jsonl")
    assert result["records"] == {"held_out": 10, "prompts": 10, "units": 3}
    assert result["models"]["sft"]["loss_interval"]["low"] is None
    assert len(result["samples"]) == 3
    for sample in result["samples"]:
        for answer in sample["answers"].values():
            assert answer["reward"] == Letters().score(sample["prompt"], answer["text"]).value


def test_no_held_out_record_leaves_everything_open(run: Run, tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("")
    result = run.evaluate(val=tmp_path / "val.jsonl")
    assert result["models"]["reinforce"]["loss"] is None
    assert result["models"]["reinforce"]["reward"] is None
    assert result["samples"] == []
    assert "is not known" in (verdict(result) or "")


def test_adapters_in_the_wrong_order_are_named(run: Run) -> None:
    with pytest.raises(UserError, match=r"adapter_rl_final.pt was made with the stage reinforce, but sft is to be"):
        run.evaluate(adapters=[run.reinforce, run.sft])


def test_an_adapter_of_another_expert_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r"the expert tiny_expert, but other_expert is to be evaluated"):
        run.evaluate(expert="other_expert")


def test_a_changed_adapter_file_is_refused(run: Run, tmp_path: Path) -> None:
    state = load_state(run.sft)
    name = next(iter(state["model_state_dict"]))
    save_state(state, tmp_path / "adapter.pt")
    raw = torch.load(tmp_path / "adapter.pt", weights_only=True)
    raw["model_state_dict"][name] += 1.0
    torch.save(raw, tmp_path / "adapter.pt")
    with pytest.raises(UserError, match="is damaged"):
        run.evaluate(adapters=[tmp_path / "adapter.pt", run.reinforce])


CONFIG = """
datasets: {banking: {source: demo, domain: banking}}
defaults: {reinforce: {eval_examples: 99, max_seq_len: 333, token_budget: 1234, threads: 1, reward: length_penalty}}
experts:
  banking_expert: {dataset: banking, stages: [sft, reinforce], routing: {keywords: [bank]}}
  plain_expert: {dataset: banking, sft: {eval_examples: 7}, routing: {always_active: true}}
"""


def test_settings_survive_the_way_to_the_script(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    settings = load([tmp_path / "config.yaml"], root=tmp_path)
    texts = [evaluation_settings(settings, "banking_expert"), evaluation_operation(settings, "banking_expert")]
    back = evaluation_from_json(*texts)
    assert (back.expert, back.dataset, back.stages) == ("banking_expert", "banking", ("sft", "reinforce"))
    assert (back.eval_examples, back.max_seq_len, back.token_budget, back.threads) == (99, 333, 1234, 1)
    assert back.sampling is not None
    assert back.sampling.reward == "length_penalty"
    assert back.sampling.token_budget == 1234
    plain = evaluation_from_json(
        evaluation_settings(settings, "plain_expert"), evaluation_operation(settings, "plain_expert")
    )
    assert (plain.sampling, plain.eval_examples) == (None, 7)


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("reinforce: {token_budget: 999}", False),
        ("reinforce: {learning_rate: 0.5}", False),  # its adapter changes, and is an input
        ("reinforce: {temperature: 0.5}", True),
        ("reinforce: {eval_examples: 5}", True),
    ],
)
def test_only_what_decides_the_numbers_makes_an_evaluation_stale(tmp_path: Path, change: str, stale: bool) -> None:
    texts = []
    for name, own in (("a", ""), ("b", f", {change}")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(CONFIG.replace("routing: {keywords: [bank]}", f"routing: {{keywords: [bank]}}{own}"))
        texts.append(evaluation_settings(load([path], root=tmp_path), "banking_expert"))
    assert (texts[0] != texts[1]) == stale


def test_a_text_of_other_settings_is_refused() -> None:
    with pytest.raises(UserError, match="these settings should hold"):
        evaluation_from_json("{}", "{}")


def test_a_gain_within_bounds_counts() -> None:
    assert verdict(made_evaluation()) == "counts"
    assert verdict(without_reward()) is None


def test_what_does_not_count_says_why() -> None:
    assert verdict(made_evaluation(kl=0.75)) == "does not count: KL of 0.75 nats a token is above 0.5"
    assert verdict(made_evaluation(loss=2.5)) == "does not count: the held-out loss is 25% worse, more than 10%"
    both = verdict(made_evaluation(kl=0.75, loss=2.5)) or ""
    assert both.count(";") == 1


@pytest.mark.parametrize(
    ("kl", "loss", "low", "passed"),
    [
        (0.5, 2.2, 0.001, [True, True, True]),
        (0.501, 2.2, 0.001, [False, True, True]),
        (0.5, 2.21, 0.001, [True, False, True]),
        (0.5, 2.2, 0.0, [True, True, False]),
        (0.5, 2.2, 1e-17, [True, True, False]),  # equal rewards, but for rounding
        (0.5, 2.2, None, [True, True, False]),
        (None, None, None, [False, False, False]),
    ],
)
def test_the_bounds(kl: float | None, loss: float | None, low: float | None, passed: list[bool]) -> None:
    checks = gain_checks({"reward": {"low": low}}, before={"loss": 2.0}, after={"kl": kl, "loss": loss})
    assert list(checks.values()) == passed


def script(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_the_script_writes_the_evaluation(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "seed: 3\ndevice: cpu\ndatasets: {tiny: {source: demo, domain: banking}}\nexperts:\n  tiny_expert:\n"
        "    dataset: tiny\n    stages: [sft, reinforce]\n    adapter: {rank: 2, alpha: 4}\n"
        "    reinforce: {max_new_tokens: 4, max_seq_len: 110, token_budget: 300, threads: 1}\n"
        "    routing: {always_active: true}\n"
    )
    settings = load([tmp_path / "config.yaml"], root=tmp_path)
    arguments = (
        *("--base", run.base, "--val", run.data / "val.jsonl", "--train", run.data / "train.jsonl"),
        *("--settings", evaluation_settings(settings, "tiny_expert")),
        *("--operation", evaluation_operation(settings, "tiny_expert"), "--output", tmp_path / "evaluation.json"),
    )
    done = script(*arguments, "--adapters", run.sft, run.reinforce)
    assert done.returncode == 0, done.stderr
    content = read_json(tmp_path / "evaluation.json")
    assert content["reward"]["name"] == "finance"
    weights = content["reward"]["weights"]
    for model in content["models"].values():
        total = sum(weight * model["axes"][name]["mean"] for name, weight in weights.items())
        assert model["reward"]["mean"] == pytest.approx(total)
    assert "the gain in reward " in done.stdout
    failed = script(*arguments, "--adapters", run.sft)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: --adapters must give one file for each of sft, reinforce")


def test_it_can_be_written(evaluation: dict, tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", evaluation)
    assert read_json(tmp_path / "evaluation.json") == evaluation
    rewards = [model["reward"]["mean"] for model in evaluation["models"].values()]
    assert statistics.pstdev(rewards) > 0
