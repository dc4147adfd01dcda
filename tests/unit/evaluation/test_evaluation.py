"""The evaluation of an expert: the stages' own numbers, before and after, and whether a gain counts."""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sealed_experts.configuration.document import Settings
from sealed_experts.configuration.jobs import evaluation_operation, evaluation_settings
from sealed_experts.configuration.resolution import load
from sealed_experts.data.records import RECORDS, read_records, write_records
from sealed_experts.data.templates import Turn
from sealed_experts.errors import UserError
from sealed_experts.evaluation.experts import Evaluated, evaluate_expert, sample_indices
from sealed_experts.evaluation.gains import gain_checks, verdict
from sealed_experts.evaluation.job import AnswerSampling, EvaluationJob, evaluation_from_json
from sealed_experts.evaluation.measuring import record_losses
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.metrics import METRICS, Metric
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.classes import CAUSAL
from sealed_experts.models.loading import load_base
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.rewards import Score
from sealed_experts.training.batches import physical_batches
from sealed_experts.training.checkpoints import load_state, save_state
from sealed_experts.training.dataset import UnitDataset
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


def metrics_of(*names: str) -> tuple[Metric, ...]:
    return tuple(METRICS[name]() for name in names)


def sampling(**changes: object) -> AnswerSampling:
    """How the stage itself samples, and answers each prompt once."""
    values = {name: getattr(REINFORCE, name) for name in ("max_new_tokens", "temperature", "top_p")}
    values |= {"answers": 1, "max_seq_len": 110}
    return AnswerSampling(**{**values, **changes})  # type: ignore[arg-type]


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
            "model_class": CAUSAL,
            "model_options": {},
            "stages": ("sft", "reinforce"),
            "eval_examples": 256,
            "max_seq_len": 110,
            "token_budget": 300,
            "threads": 1,
            "metrics": metrics_of("loss", "perplexity", "reward", "exact_match"),
            "sampling": sampling(),
            "rewarded": REINFORCE,
        }
        return EvaluationJob(**{**values, **changes})  # type: ignore[arg-type]

    def evaluated(self, *, val: Path | None = None, adapters: list[Path] | None = None, **changes: object) -> Evaluated:
        run = self.settings(**changes)
        return evaluate_expert(
            run,
            base=self.base,
            val=val or self.data / "val.jsonl",
            train=[self.data / "train.jsonl"],
            adapters=adapters or [self.sft, self.reinforce],
            reward=Letters() if run.rewarded else None,
        )

    def evaluate(self, **changes: object) -> dict:
        return self.evaluated(**changes).content  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def evaluated(run: Run) -> Evaluated:
    return run.evaluated()


@pytest.fixture(scope="module")
def evaluation(evaluated: Evaluated) -> dict:
    return evaluated.content


def mean(evaluation: dict, model: str, metric: str) -> float:
    return evaluation["models"][model]["metrics"][metric]["mean"]


def test_the_numbers_are_the_stages_own(run: Run, evaluation: dict) -> None:
    sft, reinforce = stage_metrics(load_state(run.sft)), stage_metrics(load_state(run.reinforce))
    models = evaluation["models"]
    assert mean(evaluation, "base", "loss") == sft["first_val_loss"]
    assert mean(evaluation, "sft", "loss") == sft["final_val_loss"] == reinforce["first_val_loss"]
    assert mean(evaluation, "reinforce", "loss") == reinforce["final_val_loss"]
    assert mean(evaluation, "sft", "reward") == reinforce["mean_reward_before"]
    assert mean(evaluation, "reinforce", "reward") == reinforce["mean_reward_after"]
    assert models["reinforce"]["kl"] == reinforce["kl_after"] > 0
    for figure in ("entropy", "response_tokens"):
        assert models["sft"][figure] == reinforce[f"{figure}_before"]
        assert models["reinforce"][figure] == reinforce[f"{figure}_after"]
    assert models["reinforce"]["truncated_share"] == reinforce["truncated_share_after"]
    for name, value in reinforce["axes_after"].items():
        assert mean(evaluation, "reinforce", f"reward.{name}") == value


def test_each_record_has_its_own_loss(run: Run) -> None:
    """Against transformers' loss of each record alone, which takes the mean over its answer's tokens."""
    base = load_base(run.base.parent, device=torch.device("cpu"))
    records = read_records(run.data / "val.jsonl")
    dataset = UnitDataset.from_records(records, template="alpaca", tokenizer=base.tokenizer, max_seq_len=110)
    examples = dataset.rows()
    batches = physical_batches(examples, token_budget=300, pad_id=0, device=torch.device("cpu"))
    losses = record_losses(base.model, batches, records=len(examples))
    assert len(batches) > 1
    # The head also runs on positions that fill its last chunk: they were once counted.
    assert losses.mean == pytest.approx(sum(losses.sums) / sum(example.response_tokens for example in examples))
    for example, total, count in zip(examples, losses.sums, losses.tokens, strict=True):
        ids = torch.tensor([example.ids])
        labels = ids.clone()
        labels[:, : example.prompt_length] = -100
        assert count == example.response_tokens
        assert total / count == pytest.approx(base.model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


def test_another_token_budget_moves_the_loss_by_rounding_only(run: Run, evaluation: dict) -> None:
    other = run.evaluate(token_budget=2000)
    for name, model in evaluation["models"].items():
        assert mean(other, name, "loss") == pytest.approx(model["metrics"]["loss"]["mean"], abs=1e-5)


def test_models_are_told_apart_and_compared_with_the_one_before(evaluation: dict) -> None:
    models = evaluation["models"]
    assert list(models) == ["base", "sft", "reinforce"]
    assert len({mean(evaluation, name, "loss") for name in models}) == 3
    assert models["base"]["kl"] is None
    assert models["sft"]["kl"] > 0
    for model in models.values():
        loss, perplexity = model["metrics"]["loss"], model["metrics"]["perplexity"]
        for name in ("mean", "low", "high", "min", "max"):
            assert perplexity[name] == pytest.approx(math.exp(loss[name]))
        assert loss["min"] < loss["low"] < loss["mean"] < loss["high"] < loss["max"]
        assert (loss["count"], loss["coverage"]) == (10, 1.0)


def test_gains_are_differences_over_the_same_prompts(evaluation: dict) -> None:
    assert [(gain["from"], gain["to"]) for gain in evaluation["gains"]] == [("base", "sft"), ("sft", "reinforce")]
    for gain in evaluation["gains"]:
        assert gain["metrics"].keys() == {"loss", "reward", "reward.vowels", "reward.length", "exact_match"}
        for name, value in gain["metrics"].items():
            change = mean(evaluation, gain["to"], name) - mean(evaluation, gain["from"], name)
            assert value["mean"] == pytest.approx(change)


def test_it_says_how_it_was_measured(evaluation: dict) -> None:
    assert (evaluation["expert"], evaluation["dataset"]) == ("tiny_expert", "tiny")
    assert evaluation["records"] == {"held_out": 10, "prompts": 10, "units": 10}
    assert evaluation["sampling"] == {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 8, "answers": 1, "seed": 3}
    weights = {"vowels": 0.75, "length": 0.25}
    assert evaluation["reward"] == {"name": "letters", "stage": "reinforce", "weights": weights}
    assert [(about["metric"], about["unit"]) for about in evaluation["metrics"]] == [
        *(("loss", "nats per token"), ("perplexity", ""), ("reward", "mean, 0 to 1")),
        *(("reward.vowels", "weight 0.75"), ("reward.length", "weight 0.25"), ("exact_match", "share of answers")),
    ]
    assert set(evaluation["checks"]) == {
        "kl_at_most_0.5",
        "perplexity_at_most_5_percent_worse",
        "cut_answers_not_more_frequent",
        "reward_gain_above_zero",
    }


def test_samples_show_every_model_on_prompts_that_nobody_picked(run: Run, evaluation: dict) -> None:
    records = [(record.question, record.output) for record in read_records(run.data / "val.jsonl")]
    assert len(evaluation["samples"]) == 3
    assert evaluation["samples"][0]["prompt"] == records[0][0]
    for sample in evaluation["samples"]:
        assert (sample["prompt"], sample["reference"]["text"]) in records
        assert list(sample["answers"]) == ["base", "sft", "reinforce"]
        assert sample["reference"]["scores"]["exact_match"] == 1.0
        for answer in [sample["reference"], *sample["answers"].values()]:
            assert answer["scores"]["reward"] == Letters().score(sample["prompt"], answer["text"]).value


def test_the_sample_rule() -> None:
    assert sample_indices([5, 5, 7, 5, 6, 9]) == [0, 2, 4]
    assert sample_indices([5, 5]) == [0]


def test_the_same_files_give_the_same_evaluation(run: Run, evaluation: dict) -> None:
    assert run.evaluate() == evaluation
    json.dumps(evaluation, allow_nan=False)


def test_without_a_metric_of_answers_only_losses_are_measured(run: Run, evaluation: dict) -> None:
    plain = run.evaluated(stages=("sft",), metrics=metrics_of("loss"), sampling=None, rewarded=None, adapters=[run.sft])
    content = plain.content
    assert list(content["models"]) == ["base", "sft"]
    assert content["models"]["sft"]["metrics"] == {"loss": evaluation["models"]["sft"]["metrics"]["loss"]}
    assert (content["reward"], content["sampling"], content["checks"], content["samples"]) == (None, None, {}, [])
    assert content["records"]["prompts"] == 0
    assert content["gains"][0]["metrics"].keys() == {"loss"}
    assert verdict(content) is None
    assert {line["prediction"] for lines in plain.predictions.values() for line in lines} == {None}


def test_an_expert_without_a_reward_can_be_asked(run: Run) -> None:
    greedy = sampling(temperature=0.0, top_p=1.0)
    changes = {"stages": ("sft",), "metrics": metrics_of("exact_match"), "rewarded": None, "adapters": [run.sft]}
    asked = run.evaluated(sampling=greedy, **changes)
    assert asked.content["models"]["sft"]["metrics"].keys() == {"exact_match"}
    assert (asked.content["reward"], asked.content["checks"], verdict(asked.content)) == (None, {}, None)
    assert asked.content["models"]["sft"]["response_tokens"] > 0
    assert asked.content["models"]["sft"]["kl"] > 0
    assert all(sample["reference"]["scores"] == {"exact_match": 1.0} for sample in asked.content["samples"])
    # The likeliest token has no need of the random numbers.
    again = run.evaluated(sampling=greedy, seed=4, **changes)
    assert again.predictions == asked.predictions


def test_every_prediction_stands_with_its_record_and_its_scores(run: Run, evaluated: Evaluated) -> None:
    records = read_records(run.data / "val.jsonl")
    assert list(evaluated.predictions) == ["base", "sft", "reinforce"]
    for name, lines in evaluated.predictions.items():
        asked = [(line["instruction"], line["input"], line["gold"]) for line in lines]
        assert asked == [(record.instruction, record.input, record.output) for record in records]
        for record, line in zip(records, lines, strict=True):
            assert line["scores"]["reward"] == Letters().score(record.question, line["prediction"]).value
        for metric in ("reward", "reward.length", "exact_match"):
            values = [line["scores"][metric] for line in lines]
            assert mean(evaluated.content, name, metric) == statistics.fmean(values)
            entry = evaluated.content["models"][name]["metrics"][metric]
            assert (entry["min"], entry["max"], entry["count"]) == (min(values), max(values), 10)


def test_of_a_conversation_the_last_learned_turn_is_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    turns = [Turn("user", "What is a loan?"), Turn("assistant", "Money lent."), Turn("user", "And a bond?")]
    record = RECORDS["chat"].of(messages=(*turns, Turn("assistant", "A tradable loan.")))
    write_records(tmp_path / "val.jsonl", [record])
    (line,) = run.evaluated(val=tmp_path / "val.jsonl").predictions["sft"]
    assert line["instruction"] == "user: What is a loan?\nassistant: Money lent.\nuser: And a bond?"
    assert (line["input"], line["gold"]) == ("", "A tradable loan.")


def test_prompts_without_room_for_an_answer_count_as_not_answered(run: Run, evaluated: Evaluated) -> None:
    """They do not stop the evaluation, and they do not leave the mean."""
    lengths = sorted(len(line["instruction"] + line["input"]) for line in evaluated.predictions["sft"])
    assert lengths[0] < lengths[-1]
    for room in range(40, 100, 4):
        tight = run.evaluated(sampling=sampling(max_new_tokens=110 - room))
        if 0 < tight.content["records"]["prompts"] < 10:
            break
    asked = tight.content["records"]["prompts"]
    lines, entry = tight.predictions["sft"], tight.content["models"]["sft"]["metrics"]["reward"]
    lost = [line for line in lines if line["prediction"] is None]
    assert len(lost) == 10 - asked > 0
    assert {line["scores"]["reward"] for line in lost} == {0.0}
    usable = sum(bool(line["prediction"]) for line in lines)
    assert (entry["count"], entry["min"], entry["coverage"]) == (10, 0.0, usable / 10)
    assert entry["mean"] == statistics.fmean(line["scores"]["reward"] for line in lines)
    for sample in tight.content["samples"]:
        assert Letters().score(sample["prompt"], sample["answers"]["sft"]["text"]).value == pytest.approx(
            sample["answers"]["sft"]["scores"]["reward"]
        )


def test_several_answers_to_a_prompt_are_other_answers_to_the_same_prompts(run: Run, evaluated: Evaluated) -> None:
    evaluation, several = evaluated.content, run.evaluated(sampling=sampling(answers=3))
    assert several.content["sampling"]["answers"] == 3
    assert several.content["records"] == evaluation["records"]
    assert several.content["samples"] == evaluation["samples"]  # of the first answers
    for name, one in evaluation["models"].items():
        three = several.content["models"][name]
        assert three["metrics"]["loss"] == one["metrics"]["loss"]
        assert three["metrics"]["reward"]["mean"] != one["metrics"]["reward"]["mean"]
        assert three["metrics"]["reward"]["count"] == 10
        assert several.predictions[name][::3] == evaluated.predictions[name]


def test_only_the_first_records_are_used_if_asked(run: Run, evaluation: dict) -> None:
    few = run.evaluate(eval_examples=4)
    assert few["records"]["held_out"] == 4
    loss = few["models"]["sft"]["metrics"]["loss"]
    assert (loss["low"], loss["high"], loss["count"]) == (None, None, 4)
    assert loss["mean"] != mean(evaluation, "sft", "loss")
    assert not few["checks"]["reward_gain_above_zero"]
    assert "too few held-out prompts" in (verdict(few) or "")


def test_records_of_one_unit_stay_together(run: Run, tmp_path: Path) -> None:
    """The stages gather rows by unit: a sample's answers must still be those to its own prompt."""
    records = read_records(run.data / "val.jsonl")
    mixed = [dataclasses.replace(record, unit=f"unit {index % 3}") for index, record in enumerate(records)]
    write_records(tmp_path / "val.jsonl", mixed)
    result = run.evaluate(val=tmp_path / "val.jsonl")
    assert result["records"] == {"held_out": 10, "prompts": 10, "units": 3}
    assert result["models"]["sft"]["metrics"]["loss"]["low"] is None
    assert len(result["samples"]) == 3
    for sample in result["samples"]:
        for answer in sample["answers"].values():
            assert answer["scores"]["reward"] == Letters().score(sample["prompt"], answer["text"]).value


def test_no_held_out_record_leaves_everything_open(run: Run, tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("")
    result = run.evaluate(val=tmp_path / "val.jsonl")
    nothing = dict.fromkeys(("mean", "low", "high", "min", "max", "coverage")) | {"count": 0}
    assert result["models"]["reinforce"]["metrics"] == dict.fromkeys(
        ("loss", "perplexity", "reward", "exact_match"), nothing
    )
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


def job_of(settings: Settings, expert: str) -> EvaluationJob:
    return evaluation_from_json(evaluation_settings(settings, expert), evaluation_operation(settings, expert))


def test_settings_survive_the_way_to_the_script(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    settings = load([tmp_path / "config.yaml"], root=tmp_path)
    back = job_of(settings, "banking_expert")
    assert (back.expert, back.dataset, back.stages) == ("banking_expert", "banking", ("sft", "reinforce"))
    assert (back.eval_examples, back.max_seq_len, back.token_budget, back.threads) == (99, 333, 1234, 1)
    assert isinstance(back.rewarded, Reinforce)
    assert back.rewarded.reward == "length_penalty"
    # As the stage samples, for whose figures these are to be the same.
    assert back.sampling == AnswerSampling(max_new_tokens=64, temperature=0.7, top_p=0.9, answers=1, max_seq_len=333)
    assert [metric.feature for metric in back.metrics] == ["loss", "perplexity", "reward"]
    plain = job_of(settings, "plain_expert")
    assert (plain.sampling, plain.rewarded, plain.eval_examples) == (None, None, 7)
    assert [metric.feature for metric in plain.metrics] == ["loss", "perplexity"]


def test_what_is_measured_and_how_is_inherited(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        CONFIG + "overrides: {evaluation: {metrics: [exact_match, loss], top_p: 0.5}}\n"
    )
    settings = load([tmp_path / "config.yaml"], root=tmp_path)
    plain, rewarded = (job_of(settings, name) for name in ("plain_expert", "banking_expert"))
    for job in (plain, rewarded):
        assert [metric.feature for metric in job.metrics] == ["loss", "exact_match"]
        assert job.rewarded is None  # no metric needs its reward
        assert job.sampling is not None
    assert (plain.sampling.temperature, plain.sampling.top_p, plain.sampling.max_new_tokens) == (0.0, 0.5, 64)
    assert (rewarded.sampling.temperature, rewarded.sampling.top_p) == (0.7, 0.5)


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("reinforce: {token_budget: 999}", False),
        ("reinforce: {learning_rate: 0.5}", False),  # its adapter changes, and is an input
        ("reinforce: {temperature: 0.5}", True),
        ("reinforce: {eval_examples: 5}", True),
        ("eval_answers: 2", True),
        ("evaluation: {temperature: 0.7, top_p: 0.9}", False),  # what the stage has
        ("evaluation: {metrics: [reward, perplexity, loss]}", False),
        ("evaluation: {metrics: [reward, loss]}", True),
        ("evaluation: {metrics: [loss, perplexity]}", True),
        ("evaluation: {max_new_tokens: 65}", True),
    ],
)
def test_only_what_decides_the_numbers_makes_an_evaluation_stale(tmp_path: Path, change: str, stale: bool) -> None:
    texts = []
    for name, own in (("a", ""), ("b", f", {change}")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(CONFIG.replace("routing: {keywords: [bank]}", f"routing: {{keywords: [bank]}}{own}"))
        texts.append(evaluation_settings(load([path], root=tmp_path), "banking_expert"))
    assert (texts[0] != texts[1]) == stale


def test_how_to_answer_changes_nothing_where_no_answer_is_asked_for(tmp_path: Path) -> None:
    texts = set()
    for own in ("", "eval_answers: 2, ", "evaluation: {temperature: 0.5}, "):
        (tmp_path / "config.yaml").write_text(
            CONFIG.replace("sft: {eval_examples: 7}", f"{own}sft: {{eval_examples: 7}}")
        )
        texts.add(evaluation_settings(load([tmp_path / "config.yaml"], root=tmp_path), "plain_expert"))
    assert len(texts) == 1


def test_a_text_of_other_settings_is_refused() -> None:
    with pytest.raises(UserError, match="these settings should hold"):
        evaluation_from_json("{}", "{}")


def test_a_gain_within_bounds_counts() -> None:
    assert verdict(made_evaluation()) == "counts"
    assert verdict(without_reward()) is None


def test_what_does_not_count_says_why() -> None:
    assert verdict(made_evaluation(kl=0.75)) == "does not count: KL of 0.75 nats per token is above 0.5"
    assert verdict(made_evaluation(loss=2.5)) == "does not count: the held-out perplexity is 64.9% worse, more than 5%"
    both = verdict(made_evaluation(kl=0.75, loss=2.5)) or ""
    assert both.count(";") == 1


def test_more_cut_answers_do_not_count() -> None:
    made = made_evaluation()
    made["models"]["reinforce"]["truncated_share"] = 0.28125
    made["checks"]["cut_answers_not_more_frequent"] = False
    assert verdict(made) == "does not count: the share of cut answers rose from 25.0% to 28.1%"


@pytest.mark.parametrize(
    ("kl", "perplexity", "cut", "low", "failed"),
    [
        (0.5, 1.05, 0.25, 0.001, None),
        (0.1, 0.9, 0.0, 0.001, None),
        (0.501, 1.05, 0.25, 0.001, "kl_at_most_0.5"),
        (0.5, 1.051, 0.25, 0.001, "perplexity_at_most_5_percent_worse"),
        (0.5, 1.05, 0.254, 0.001, "cut_answers_not_more_frequent"),
        (0.5, 1.05, 0.25, 0.0, "reward_gain_above_zero"),
        (0.5, 1.05, 0.25, 1e-17, "reward_gain_above_zero"),  # equal rewards, but for rounding
        (0.5, 1.05, 0.25, None, "reward_gain_above_zero"),
    ],
)
def test_the_bounds(kl: float, perplexity: float, cut: float, low: float | None, failed: str | None) -> None:
    before, after = (
        {"metrics": {"loss": {"mean": loss}}, "truncated_share": share}
        for loss, share in ((2.0, 0.25), (2.0 + math.log(perplexity), cut))
    )
    checks = gain_checks({"metrics": {"reward": {"low": low}}}, before=before, after={**after, "kl": kl})
    assert [name for name, passed in checks.items() if not passed] == ([failed] if failed else [])


def test_what_was_not_measured_does_not_count() -> None:
    unknown = {"metrics": {"loss": {"mean": None}}, "truncated_share": None, "kl": None}
    checks = gain_checks({"metrics": {"reward": {"low": None}}}, before=unknown, after=unknown)
    assert set(checks.values()) == {False}


def test_a_gain_counts_only_where_the_loss_is_measured_too() -> None:
    made = made_evaluation()
    for model in made["models"].values():
        del model["metrics"]["loss"]
    made["checks"]["perplexity_at_most_5_percent_worse"] = False
    assert verdict(made) == "does not count: the held-out perplexity is not known"


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
    predictions = ["--predictions", *(tmp_path / f"{name}.jsonl" for name in ("base", "sft", "reinforce"))]
    done = script(*arguments, *predictions, "--adapters", run.sft, run.reinforce)
    assert done.returncode == 0, done.stderr
    content = read_json(tmp_path / "evaluation.json")
    assert content["reward"]["name"] == "finance"
    weights = content["reward"]["weights"]
    for model in content["models"].values():
        total = sum(weight * model["metrics"][f"reward.{name}"]["mean"] for name, weight in weights.items())
        assert model["metrics"]["reward"]["mean"] == pytest.approx(total)
    assert "the gain in reward " in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [["instruction", "input", "gold", "prediction", "scores"]] * 10
    failed = script(*arguments, *predictions, "--adapters", run.sft)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: --adapters must give one file for each of sft, reinforce")
    failed = script(*arguments, *predictions[:-1], "--adapters", run.sft, run.reinforce)
    assert failed.stderr.startswith("error: --predictions must give one file for each of base, sft, reinforce")


def test_it_can_be_written(evaluation: dict, tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", evaluation)
    assert read_json(tmp_path / "evaluation.json") == evaluation
    rewards = [mean(evaluation, name, "reward") for name in evaluation["models"]]
    assert statistics.pstdev(rewards) > 0
