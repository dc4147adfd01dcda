"""What a package says about a reinforce stage. It contains nothing that the stage measured on private records."""

import json

from sealed_experts.packages.report import VerifiedPackage
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building


def opened(**changes) -> VerifiedPackage:
    return open_bytes(building.package(**changes), trust=building.trust())


def reinforced(**changes) -> dict:
    """rl_metrics.json of a stage after sft."""
    return building.metrics(**{**building.reinforce_metrics(), **changes})


RL_CHAIN = {"stage": "reinforce", "reason": "the last of the stages sft, reinforce", "candidates": ["sft", "reinforce"]}
RL_RUN = {"stages": ("sft", "reinforce")}
LOSSES = {"low": 2.015625, "high": 2.109375}
ABOUT = [
    {"metric": "loss", "title": "Held-out loss", "unit": "nats per token", "higher_is_better": False},
    {"metric": "reward", "title": "Reward", "unit": "mean, 0 to 1", "higher_is_better": True},
]
EVALUATION = {
    "expert": "tiny_expert",
    "intervals": {"confidence": 0.95},
    "metrics": ABOUT,
    "models": {
        "base": {
            "metrics": {
                "loss": {"mean": 3.125, **LOSSES},
                "reward": {"mean": 0.40625, "low": 0.375, "high": 0.4375},
            },
        },
        "reinforce": {
            "metrics": {
                "loss": {"mean": 2.0625, **LOSSES},
                "reward": {"mean": 0.59375, "low": 0.5625, "high": 0.625},
            },
        },
    },
}


def reinforced_package(**changes) -> VerifiedPackage:
    public = changes.pop("public", False)
    run = building.run(**RL_RUN, public_evaluation=public, dataset="questions" if public else None)
    return opened(settings=run, metrics=reinforced(**changes), selection=RL_CHAIN, evaluation=EVALUATION)


def test_the_manifest_states_how_a_reinforce_stage_was_trained():
    """It once stated no batch size, because this setting has another name in reinforce."""
    package = reinforced_package()
    assert package.manifest["training"] == {
        "datasets": [{"hmac_sha256": building.inputs().names.of_data("e" * 64)}],
        "stages": ["sft", "reinforce"],
        "selected_stage": "reinforce",
        "selection_reason": "the last of the stages sft, reinforce",
        "steps": 25,
        "stopped_reason": "max_steps",
        "settings": {
            "learning_rate": 0.004,
            "rollout_batch_size": 96,
            "max_seq_len": 256,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "reward": "finance",
            "max_new_tokens": 48,
            "temperature": 0.7,
            "top_p": 0.9,
            "kl_coef": 0.02,
            "entropy_coef": 0.01,
        },
    }
    card = package.members["README.md"].decode()
    for row in (
        "| `rollout_batch_size` | 96 |",
        "| `reward` | finance |",
        "| `max_new_tokens` | 48 |",
        "| `temperature` | 0.7 |",
        "| `top_p` | 0.9 |",
        "| `kl_coef` | 0.02 |",
        "| `entropy_coef` | 0.01 |",
    ):
        assert row in card


def test_what_a_reward_is_told_about_the_owners_data_stays_out():
    """A reward's options may contain the owner's own text."""
    assert b"wolpertinger" in json.dumps(building.reinforce_metrics()).encode()
    run = building.run(**RL_RUN, public_evaluation=True)
    assert b"wolpertinger" not in building.package(settings=run, metrics=reinforced(), selection=RL_CHAIN)


def test_held_out_rewards_are_published_beside_the_loss_where_the_dataset_says_so():
    package = reinforced_package(public=True)
    loss, reward = package.manifest["quality"]["metrics"]
    assert loss["metric"] == "loss"
    assert reward == {
        **ABOUT[1],
        "value": 0.59375,
        "base_value": 0.40625,
        "interval": {"low": 0.5625, "high": 0.625, "confidence": 0.95},
    }
    card = package.members["README.md"].decode()
    assert "| Held-out loss (nats per token) | 3.1250 | 2.0625 | 2.0156 to 2.1094 (95%) |" in card
    assert "| Reward (mean, 0 to 1) | 0.4062 | 0.5938 | 0.5625 to 0.6250 (95%) |" in card


def measured(value, found=None) -> set[str]:
    """Return every number of four digits or more below `value`, as JSON writes it."""
    found = set() if found is None else found
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            measured(item, found)
    elif isinstance(value, int | float) and not isinstance(value, bool) and len(json.dumps(value)) >= 6:
        found.add(json.dumps(value))
    return found


def test_nothing_that_reinforce_measured_on_records_enters_a_package_of_private_data():
    """Every number in rl_metrics.json except settings is unique. The test searches every byte of the file for them."""
    run = building.run(**RL_RUN)
    metrics = reinforced(privacy={})
    numbers = measured(metrics) - measured(metrics["settings"]["training"])
    assert {"0.40625", "0.59375", "3.125001", "0.703125", "1234567"} <= numbers
    assert len(numbers) > 25
    data = building.package(settings=run, metrics=metrics, selection=RL_CHAIN)
    assert [number for number in sorted(numbers) if number.encode() in data] == []
    for digest in ("d" * 64, "e" * 64):
        assert digest.encode() not in data
    run = building.run(**RL_RUN, public_evaluation=True, dataset="questions")
    public = building.package(settings=run, metrics=metrics, selection=RL_CHAIN, evaluation=EVALUATION)
    assert {number for number in numbers if number.encode() in public} == {"0.40625", "0.59375", "2.0625"}


def test_the_card_says_what_the_privacy_statement_covers_where_an_earlier_stage_is_shipped():
    earlier = {"stage": "sft", "reason": "the best of sft, reinforce by loss on held-out records"}
    package = opened(settings=building.run(**RL_RUN), selection=RL_CHAIN | earlier)
    card = package.members["README.md"].decode()
    assert "It covers all stages (sft, reinforce), not only sft, which the package holds" in card
    assert "It covers all stages" not in reinforced_package().members["README.md"].decode()
