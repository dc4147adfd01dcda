"""An invented evaluation.json in the form that the workflow writes."""

import copy
import json
from pathlib import Path
from typing import Any

AXES = {"format": 0.4, "terminology": 0.3, "relevance": 0.2, "safety": 0.1}


def interval(mean: float, *, half: float = 0.02) -> dict[str, float]:
    """Return a mean with an interval around it."""
    return {"mean": mean, "low": mean - half, "high": mean + half}


def model(*, loss: float, axes: dict[str, float], kl: float | None = None) -> dict[str, Any]:
    """Return one model's entry."""
    reward = sum(AXES[name] * value for name, value in axes.items())
    return {
        "loss": loss,
        "loss_interval": {"low": loss - 0.01, "high": loss + 0.01},
        "perplexity": 2.718281828**loss,
        "perplexity_interval": {"low": 2.718281828 ** (loss - 0.01), "high": 2.718281828 ** (loss + 0.01)},
        "reward": interval(reward),
        "axes": {name: interval(value) for name, value in axes.items()},
        "kl": kl,
        "entropy": 2.125,
        "response_tokens": 31.5,
        "truncated_share": 0.25,
    }


def answer(text: str, reward: float = 0.5, *, truncated: bool | None = False) -> dict[str, Any]:
    """Return one answer; a reference is never truncated and has no such field."""
    said = {"text": text, "reward": reward, "axes": dict.fromkeys(AXES, reward)}
    return said if truncated is None else {**said, "truncated": truncated}


def made_evaluation(name: str = "banking_expert", *, kl: float = 0.125, loss: float = 2.1) -> dict[str, Any]:
    """Return an evaluation of base, sft and reinforce whose gain is 0.08 of terminology and -0.02 of safety."""
    before = {"format": 0.5, "terminology": 0.1, "relevance": 0.5, "safety": 0.9}
    after = {"format": 0.5, "terminology": 0.4, "relevance": 0.5, "safety": 0.6}
    base = {"format": 0.25, "terminology": 0.0, "relevance": 0.5, "safety": 0.9}
    return {
        "expert": name,
        "dataset": "banking",
        "records": {"held_out": 250, "prompts": 250, "units": 250},
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 48, "seed": 42},
        "reward": {"name": "finance", "weights": dict(AXES)},
        "intervals": {"confidence": 0.95, "method": "BCa bootstrap over units"},
        "models": {
            "base": model(loss=2.5, axes=base),
            "sft": model(loss=2.0, axes=before, kl=0.25),
            "reinforce": model(loss=loss, axes=after, kl=kl),
        },
        "gains": [
            {"from": "base", "to": "sft", "loss": interval(-0.5), "reward": interval(0.1), "axes": {}},
            {
                "from": "sft",
                "to": "reinforce",
                "loss": interval(loss - 2.0),
                "reward": interval(0.06),
                "axes": {axis: interval(after[axis] - before[axis]) for axis in AXES},
            },
        ],
        "checks": {
            "kl_at_most_0.5": kl <= 0.5,
            "loss_at_most_10_percent_worse": loss <= 2.2,
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
    """Return an evaluation of an expert whose stages have no reward."""
    made = copy.deepcopy(made_evaluation(name))
    del made["models"]["reinforce"]
    for one in made["models"].values():
        one |= {"reward": None, "axes": {}, "kl": None, "entropy": None}
        one |= {"response_tokens": None, "truncated_share": None}
    made["gains"] = [{**made["gains"][0], "reward": None}]
    return made | {"reward": None, "sampling": None, "checks": {}, "samples": []}


def leave_evaluation(results: Path, evaluation: dict[str, Any]) -> Path:
    """Write an evaluation at the workflow's path, and return the path."""
    path = results / "experts" / evaluation["expert"] / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation))
    return path
