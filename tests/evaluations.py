"""An invented evaluation.json in the form that the workflow writes."""

import copy
import json
import math
from pathlib import Path
from typing import Any

AXES = {"format": 0.4, "terminology": 0.3, "relevance": 0.2, "safety": 0.1}


METRICS = [
    {"metric": "loss", "title": "Held-out loss", "unit": "nats per token", "higher_is_better": False},
    {"metric": "perplexity", "title": "Perplexity", "unit": "", "higher_is_better": False},
    {"metric": "reward", "title": "Reward", "unit": "mean, 0 to 1", "higher_is_better": True},
    *(
        {"metric": f"reward.{axis}", "title": f"· {axis}", "unit": f"weight {weight:g}", "higher_is_better": True}
        for axis, weight in AXES.items()
    ),
]


def interval(mean: float, *, half: float = 0.02) -> dict[str, float]:
    """Return a mean with an interval around it."""
    return {"mean": mean, "low": mean - half, "high": mean + half}


def measured(mean: float, *, half: float = 0.02, coverage: float = 1.0) -> dict[str, float]:
    """Return a model's figure of one metric."""
    return {**interval(mean, half=half), "min": mean - 0.25, "max": mean + 0.25, "count": 250, "coverage": coverage}


def model(*, loss: float, axes: dict[str, float], kl: float | None = None) -> dict[str, Any]:
    """Return one model's entry."""
    reward = sum(AXES[name] * value for name, value in axes.items())
    perplexity = {name: math.exp(value) for name, value in interval(loss, half=0.01).items()}
    return {
        "metrics": {
            "loss": measured(loss, half=0.01),
            "perplexity": {**measured(0.0), **perplexity},
            "reward": measured(reward),
            **{f"reward.{name}": measured(value) for name, value in axes.items()},
        },
        "kl": kl,
        "entropy": 2.125,
        "response_tokens": 31.5,
        "truncated_share": 0.25,
    }


def answer(text: str, reward: float = 0.5, *, truncated: bool | None = False) -> dict[str, Any]:
    """Return one answer; the reference is never truncated and does not say."""
    scores = {"reward": reward, **{f"reward.{axis}": reward for axis in AXES}}
    said = {"text": text, "scores": scores}
    return said if truncated is None else {**said, "truncated": truncated}


def made_evaluation(name: str = "banking_expert", *, kl: float = 0.125, loss: float = 2.03125) -> dict[str, Any]:
    """Return an evaluation of base, sft and reinforce whose gain is 0.08 of terminology and -0.02 of safety."""
    before = {"format": 0.5, "terminology": 0.1, "relevance": 0.5, "safety": 0.9}
    after = {"format": 0.5, "terminology": 0.4, "relevance": 0.5, "safety": 0.6}
    base = {"format": 0.25, "terminology": 0.0, "relevance": 0.5, "safety": 0.9}
    return {
        "expert": name,
        "dataset": "banking",
        "records": {"held_out": 250, "prompts": 250, "units": 250},
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 48, "answers": 1, "seed": 42},
        "reward": {"name": "finance", "stage": "reinforce", "weights": dict(AXES)},
        "intervals": {"confidence": 0.95, "method": "BCa bootstrap over units"},
        "metrics": copy.deepcopy(METRICS),
        "models": {
            "base": model(loss=2.5, axes=base),
            "sft": model(loss=2.0, axes=before, kl=0.25),
            "reinforce": model(loss=loss, axes=after, kl=kl),
        },
        "gains": [
            {"from": "base", "to": "sft", "metrics": {"loss": interval(-0.5), "reward": interval(0.1)}},
            {
                "from": "sft",
                "to": "reinforce",
                "metrics": {
                    "loss": interval(loss - 2.0),
                    "reward": interval(0.06),
                    **{f"reward.{axis}": interval(after[axis] - before[axis]) for axis in AXES},
                },
            },
        ],
        "checks": {
            "kl_at_most_0.5": kl <= 0.5,
            "perplexity_at_most_5_percent_worse": loss <= 2.04,
            "cut_answers_not_more_frequent": True,
            "reward_gain_above_zero": True,
        },
        "sample_rule": "the first",
        "samples": [
            {
                "prompt": "What is a loan?",
                "reference": answer("Money lent.", 0.75, truncated=None),
                "answers": {
                    "base": answer("Loan is."),
                    "sft": answer("It is money."),
                    "reinforce": answer("A loan is money that", 0.625, truncated=True),
                },
            }
        ],
    }


def without_reward(name: str = "plain_expert") -> dict[str, Any]:
    """Return an evaluation of an expert without a stage that has a reward."""
    made = made_evaluation(name)
    del made["models"]["reinforce"], made["gains"][1], made["gains"][0]["metrics"]["reward"]
    for one in made["models"].values():
        one |= {"kl": None, "entropy": None, "response_tokens": None, "truncated_share": None}
        one["metrics"] = {name: one["metrics"][name] for name in ("loss", "perplexity")}
    made["metrics"] = made["metrics"][:2]
    return made | {"reward": None, "sampling": None, "checks": {}, "samples": []}


def asked_without_reward(name: str = "asked_expert") -> dict[str, Any]:
    """Return an evaluation of such an expert that answered, with a metric of its own; some answers were empty."""
    made = without_reward(name)
    about = {"metric": "exact_match", "title": "Exact match", "unit": "share of answers", "higher_is_better": True}
    made["metrics"].append(about)
    for value, one in zip((0.125, 0.5), made["models"].values(), strict=True):
        one["metrics"]["exact_match"] = measured(value, coverage=0.75)
        one |= {"response_tokens": 12.0, "truncated_share": 0.0}
    made["gains"][0]["metrics"]["exact_match"] = interval(0.375)
    said = {model: {"text": "Money.", "scores": {"exact_match": 0.0}, "truncated": False} for model in made["models"]}
    reference = {"text": "Money lent.", "scores": {"exact_match": 1.0}}
    sample = {"prompt": "What is a loan?", "reference": reference, "answers": said}
    sampling = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64, "answers": 1, "seed": 42}
    return made | {"sampling": sampling, "samples": [sample]}


def leave_evaluation(results: Path, evaluation: dict[str, Any]) -> Path:
    """Write an evaluation at the workflow's path, and return the path."""
    path = results / "experts" / evaluation["expert"] / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation))
    return path
