"""Every mistake a configuration can hold: its message names the key, the value and what would be right."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sealed_experts.configuration.budget_checks import check_dataset_sizes
from sealed_experts.configuration.resolution import load, resolve
from sealed_experts.errors import UserError
from sealed_experts.metrics import METRICS
from sealed_experts.models.adapters import KINDS, is_quantized
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.moe.settings import MODULUS_BITS
from sealed_experts.settings.messages import listed
from sealed_experts.settings.reading import read_text
from sealed_experts.training.objectives import STAGES

SOUND: dict[str, Any] = {
    "base": {"name": "demo"},
    "datasets": {
        "banking": {"source": "demo", "domain": "banking"},
        "investment": {"source": "demo", "domain": "investment"},
        "both": {"source": "combined", "of": ["banking", "investment"]},
    },
    "defaults": {"sft": {"batch_size": 16}, "privacy": {"max_grad_norm": 0.3}},
    "experts": {
        "banker": {"dataset": "banking", "routing": {"keywords": ["bank", "loan"]}},
        "investor": {"dataset": "investment", "routing": {"keywords": ["stock"]}},
        "everything": {"dataset": "both", "routing": {"always_active": True}},
    },
}
COMMIT = "8faed761d45a263340a0528343f099c05c9a4323"
MISSING = object()


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the sound configuration with values put at dotted keys."""
    document = copy.deepcopy(SOUND)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is MISSING:
            del place[last]
        else:
            place[last] = value
    return document


def mistakes(document: dict[str, Any], root: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve(document, root=root)
    return [line.strip() for line in str(caught.value).split("\n")[1:]]


ONE_MISTAKE = [
    # Unknown keys, with the nearest known one, or the group it belongs to.
    ({"sed": 1}, "sed: no such setting; did you mean `seed`?"),
    (
        {"experts.banker.sft.lerning_rate": 0.1},
        "experts.banker.sft.lerning_rate: no such setting; did you mean `learning_rate`?",
    ),
    (
        {"experts.banker.learning_rate": 0.1},
        "experts.banker.learning_rate: no such setting; did you mean `sft.learning_rate`?",
    ),
    ({"experts.banker.rank": 4}, "experts.banker.rank: no such setting; did you mean `adapter.rank`?"),
    (
        {"defaults.zzz": 4},
        "defaults.zzz: no such setting; known here: `template`, `validation`, `eval_answers`, `select`,"
        f" `select_metric`, `adapter`, {listed(STAGES)}, `package`, `evaluation`, `privacy`",
    ),
    ({"overrides.adaptor": {}}, "overrides.adaptor: no such setting; did you mean `adapter`?"),
    ({"moe.he_config.scale_bit": 40}, "moe.he_config.scale_bit: no such setting; did you mean `scale_bits`?"),
    ({"datasets.banking.domai": "x"}, "datasets.banking.domai: no such setting; did you mean `domain`?"),
    (
        {"datasets.both.val_fraction": 0.2},
        "datasets.both.val_fraction: no such setting; known here: `source`, `public_evaluation`, `of`",
    ),
    # Wrong types, with the spelling that YAML understands.
    (
        {"experts.banker.sft.learning_rate": "1e-4"},
        'experts.banker.sft.learning_rate: "1e-4" is not a number above 0; YAML reads 1e-4 as text: write 1.0e-4',
    ),
    (
        {"defaults.privacy.noise_multiplier": "2e-1"},
        'defaults.privacy.noise_multiplier: "2e-1" is not a number from 0.001 to 1000000.0 or `auto`;'
        " YAML reads 2e-1 as text: write 2.0e-1",
    ),
    (
        {"defaults.sft.max_steps": "5"},
        'defaults.sft.max_steps: "5" is not a whole number from 1 to 10000000; it was read as text: write 5',
    ),
    (
        {"defaults.sft.max_steps": "1e3"},
        'defaults.sft.max_steps: "1e3" is not a whole number from 1 to 10000000; it was read as text: write 1000',
    ),
    ({"defaults.sft.max_steps": True}, "defaults.sft.max_steps: true is not a whole number from 1 to 10000000"),
    ({"defaults.sft.max_steps": 2.5}, "defaults.sft.max_steps: 2.5 is not a whole number from 1 to 10000000"),
    ({"defaults.sft.max_steps": 0}, "defaults.sft.max_steps: 0 is not a whole number from 1 to 10000000"),
    ({"defaults.sft.weight_decay": False}, "defaults.sft.weight_decay: false is not a number of at least 0"),
    ({"defaults.sft.learning_rate": float("inf")}, "defaults.sft.learning_rate: Infinity is not a number above 0"),
    ({"seed": 2**60}, f"seed: {2**60} is not a whole number from 0 to {2**53 - 1}"),
    ({"seed": -1}, f"seed: -1 is not a whole number from 0 to {2**53 - 1}"),
    (
        {"defaults.privacy.enabled": "yes"},
        'defaults.privacy.enabled: "yes" is not `true` or `false`; write true, without quotes',
    ),
    (
        {"experts.banker.version": 1.0},
        'experts.banker.version: 1.0 is not a version such as "1.0.0"; YAML reads it as a number: write "1.0"',
    ),
    ({"experts.banker.version": "one"}, 'experts.banker.version: "one" is not a version such as "1.0.0"'),
    (
        {"experts.banker.routing.keywords": "bank"},
        'experts.banker.routing.keywords: "bank" is not a list; write [bank]',
    ),
    ({"experts.banker.sft": 5}, "experts.banker.sft: 5 is not a mapping of settings"),
    ({"overrides": [1]}, "overrides: [1] is not a mapping of settings"),
    ({"datasets": 5}, "datasets: 5 is not a mapping of settings"),
    # Values out of their range or choice.
    ({"device": "gpu"}, 'device: "gpu" is not one of `auto`, `cpu`, `cuda`; did you mean `cuda`?'),
    ({"device": "cud"}, 'device: "cud" is not one of `auto`, `cpu`, `cuda`; did you mean `cuda`?'),
    ({"datasets": MISSING}, "datasets: it is missing; give a mapping of settings"),
    (
        {"defaults.adapter.kind": "lra"},
        f'defaults.adapter.kind: "lra" is not one of {listed(KINDS)}; did you mean `lora`?',
    ),
    (
        {"defaults.template": "alpacca"},
        'defaults.template: "alpacca" is not one of `alpaca`, `chatml`, `tokenizer`; did you mean `alpaca`?',
    ),
    (
        {"experts.banker.stages": ["stf"]},
        f'experts.banker.stages[0]: "stf" is not one of {listed(STAGES)}; did you mean `sft`?',
    ),
    (
        {"defaults.select": "first"},
        'defaults.select: "first" is not one of `last`, `best`',
    ),
    ({"experts.banker.stages": []}, "experts.banker.stages: nothing is listed; give at least one"),
    (
        {"experts.banker.stages": ["sft", "sft"]},
        'experts.banker.stages: "sft" stands twice in the list; name each once',
    ),
    (
        {"defaults.privacy.noise_multiplier": 0},
        "defaults.privacy.noise_multiplier: 0 is not a number from 0.001 to 1000000.0 or `auto`",
    ),
    (
        {"defaults.privacy.noise_multiplier": "automatic"},
        'defaults.privacy.noise_multiplier: "automatic" is not a number from 0.001 to 1000000.0 or `auto`',
    ),
    ({"defaults.privacy.delta": 1}, "defaults.privacy.delta: 1 is not a number of at least 1e-12 and below 1"),
    ({"defaults.privacy.target_epsilon": 0}, "defaults.privacy.target_epsilon: 0 is not a number above 0"),
    (
        {"base.demo.hidden_size": 100},
        "base.demo.hidden_size: 100 is not a whole number of at least 16 and a multiple of 8",
    ),
    (
        {"moe.he_config.poly_modulus_degree": 5000},
        "moe.he_config.poly_modulus_degree: 5000 is not one of `1024`, `2048`, `4096`, `8192`, `16384`, `32768`",
    ),
    (
        {"moe.he_config.coeff_modulus_bits": [60, 61]},
        "moe.he_config.coeff_modulus_bits[1]: 61 is not a whole number from 2 to 60",
    ),
    (
        {"experts.banker.routing.keywords": ["bank", " "]},
        'experts.banker.routing.keywords[1]: "" is not visible text without control characters or signs'
        " that turn its direction",
    ),
    (
        {"experts.banker.description": "x" * 1001},
        "experts.banker.description: the text has 1001 characters; at most 1000 are allowed",
    ),
    # Missing keys and bad names.
    ({"experts": MISSING}, "experts: it is missing; give a mapping of settings"),
    ({"experts": {}}, "experts: nothing is listed; give at least one"),
    ({"experts.banker.dataset": MISSING}, "experts.banker.dataset: it is missing; give text that is not empty"),
    (
        {"datasets.banking.source": MISSING},
        "datasets.banking.source: it is missing; give one of `demo`, `files`, `hub`, `combined`",
    ),
    (
        {"datasets.banking.source": "file"},
        'datasets.banking.source: "file" is not one of `demo`, `files`, `hub`, `combined`; did you mean `files`?',
    ),
    (
        {"datasets.banking": {"source": "files"}},
        "datasets.banking.paths: it is missing; give a list of at least one item",
    ),
    (
        {"datasets.banking": {"source": "hub", "path": "a/b", "revision": "main"}},
        'datasets.banking.revision: "main" is not a commit of 40 hexadecimal digits',
    ),
    (
        {"datasets.banking": {"source": "files", "paths": ["rows.xlsx"]}},
        'datasets.banking.paths[0]: "rows.xlsx" is not a file that ends in .jsonl, .csv or .parquet',
    ),
    *(
        (
            {f"experts.{name}": {"dataset": "banking", "routing": {"keywords": ["x"]}}},
            f"experts.{shown}: this name becomes part of paths: it must be a name of lower-case letters, digits, `_`"
            " and `-` that begins with a letter or digit",
        )
        for name, shown in {
            "Banker": "Banker",
            "-a": "-a",
            "_a": "_a",
            "ümlaut": "ümlaut",
            "a/b": '"a/b"',
            "a b": '"a b"',
            "a\n": '"a\\n"',
            "": '""',
        }.items()
    ),
    (
        {"datasets.A": {"source": "demo"}},
        "datasets.A: this name becomes part of paths: it must be a name of lower-case letters, digits, `_` and"
        " `-` that begins with a letter or digit",
    ),
    (
        {f"datasets.{'a' * 65}": {"source": "demo"}},
        f"datasets.{'a' * 65}: this name becomes part of paths: it must be at most 64 characters",
    ),
    # Things that must exist, or fit each other.
    (
        {"experts.banker.dataset": "bankng"},
        'experts.banker.dataset: "bankng" is not a dataset; did you mean `banking`?',
    ),
    (
        {"datasets.both.of": ["banking", "investmnt"]},
        'datasets.both.of[1]: "investmnt" is not a dataset; did you mean `investment`?',
    ),
    ({"datasets.both.of": ["both"]}, "datasets.both.of: the dataset is combined of itself, through `both`"),
    (
        {"datasets.more": {"source": "combined", "of": ["both", "banking"]}},
        "datasets.more.of: `banking` would come in more than once; name each only once",
    ),
    (
        {"datasets.both.public_evaluation": True, "datasets.banking.public_evaluation": False},
        "datasets.both.public_evaluation: true, but `banking` in it does not allow publishing; set it there too, or"
        " false here",
    ),
    (
        {"datasets.banking": {"source": "files", "paths": ["nowhere.jsonl"]}},
        'datasets.banking.paths[0]: "nowhere.jsonl" is not an existing file; put the data there or correct the path'
        " (relative paths start in the repository's folder)",
    ),
    (
        {"experts.banker.adapter.target_modules": ["q_proj", "qproj"]},
        'experts.banker.adapter.target_modules[1]: "qproj" is not a linear module of qwen2; did you mean `q_proj`?',
    ),
    (
        {"defaults.adapter.target_modules": ["c_attn"]},
        'defaults.adapter.target_modules[0]: "c_attn" is not a linear module of qwen2; known here: `q_proj`, `k_proj`,'
        " `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`",
    ),
    (
        {"overrides.adapter.rank": 64},
        "overrides.adapter.rank: 64 is above moe.gatelink_config.max_lora_rank, which is 32; lower the one or raise the"
        " other",
    ),
    (
        {"defaults.sft.micro_batch_size": 2},
        "defaults.sft.batch_size: the logical batch is given twice; keep batch_size, or micro_batch_size and"
        " gradient_accumulation, whose product it is",
    ),
    (
        {"experts.banker.sft.micro_batch_size": 2},
        "experts.banker.sft.gradient_accumulation: it is missing beside micro_batch_size; the logical batch is the"
        " product of the two",
    ),
    (
        {"experts.banker.sft.warmup_steps": 3000},
        "experts.banker.sft.warmup_steps: 3000 is above max_steps, which is 2000; the warmup must end within the"
        " training",
    ),
    (
        {"experts.banker.sft.processes_per_job": 3, "defaults.sft.gpus": 2},
        "experts.banker.sft.processes_per_job: 3 processes do not fit gpus, which is 2: each process has one GPU of its"
        " own; give one of the two",
    ),
    ({"defaults.sft.gpus": 0}, "defaults.sft.gpus: 0 is not a whole number from 1 to 1024"),
    (
        {"experts.banker.stages": ["sft", "reinforce"], "overrides.reinforce.warmup_steps": 501},
        "overrides.reinforce.warmup_steps: 501 is above total_steps, which is 500; the warmup must end within the"
        " training",
    ),
    (
        {
            "experts.banker.stages": ["sft", "reinforce"],
            "experts.banker.reinforce.max_new_tokens": 64,
            "defaults.reinforce.max_seq_len": 64,
        },
        "experts.banker.reinforce.max_new_tokens: 64 leaves no room for a prompt in the 64 tokens that max_seq_len"
        " allows for both; lower the one or raise the other",
    ),
    (
        {"experts.banker.stages": ["sft", "reinforce"], "defaults.reinforce.reward": "fnance"},
        'defaults.reinforce.reward: "fnance" is no reward; did you mean `finance`?',
    ),
    (
        {"experts.banker.stages": ["reinforce", "sft"]},
        "experts.banker.stages: `reinforce` refines an adapter, and none is there yet: put `sft` before it",
    ),
    (
        {
            "experts.banker.stages": ["sft", "reinforce"],
            "experts.banker.sft.privacy.target_epsilon": 6,
            "experts.banker.reinforce.privacy.target_epsilon": 5,
        },
        "experts.banker.reinforce.privacy.target_epsilon: 5.0 is below the 6.0 of stage `sft` before it; it caps the"
        " joint ε, which only grows",
    ),
    (
        {
            "experts.banker.stages": ["sft", "reinforce"],
            "experts.banker.select": "best",
            "overrides.select_metric": "loss",
            "datasets.banking.public_evaluation": False,
        },
        'experts.banker.select: "best" would choose by held-out records of `banking`, which are private, and no ε'
        " covers that; write `last`, or datasets.banking.public_evaluation: true if they are public",
    ),
    (
        {"experts.banker.select": "best", "experts.banker.select_metric": "exact_match"},
        'experts.banker.select_metric: "exact_match" is not measured; write one of'
        f" {listed(name for name, kind in METRICS.items() if kind.usual and kind.needs == 'losses')}, or add it to"
        " evaluation.metrics",
    ),
    (
        {"defaults.select_metric": "accuracy"},
        f'defaults.select_metric: "accuracy" is not one of {listed(METRICS)}, or a part of one (`reward.safety`)',
    ),
    (
        {"experts.banker.evaluation": {"metrics": ["reward"]}},
        'experts.banker.evaluation.metrics: "reward" is measured only for an expert with the stage `reinforce`; write'
        " what can be measured, such as `loss`",
    ),
    (
        {"experts.banker.evaluation": {"metrics": ["loss", "reward"]}},
        'experts.banker.evaluation.metrics: "reward" is measured only for an expert with the stage `reinforce`; remove'
        " it",
    ),
    (
        {
            "defaults.evaluation": {"metrics": ["reward"]},
            "experts.banker.select": "best",
            "experts.banker.select_metric": "loss",
        },
        'defaults.evaluation.metrics: "reward" is measured only for an expert with the stage `reinforce`; write what'
        " can be measured, such as `loss`",
    ),
    (
        {"defaults.evaluation": {"temperature": 1e-4}},
        "defaults.evaluation.temperature: 0.0001 is too low to divide by; write 0 for the likeliest token each time, or"
        " at least 0.001",
    ),
    (
        {"defaults.evaluation": {"metrics": ["exact_match"]}, "experts.banker.sft": {"max_seq_len": 64}},
        "experts.banker.evaluation.max_new_tokens: 64 leaves no room for a prompt in the 64 tokens of sft.max_seq_len;"
        " lower the one or raise the other",
    ),
    (
        {"defaults.evaluation": {"metrics": ["exact_match", "f2"]}},
        'defaults.evaluation.metrics[1]: "f2" is not one of `loss`, `perplexity`, `reward`, `exact_match`',
    ),
    (
        {"experts.banker.select": "best"},
        'experts.banker.select_metric: "reward" is measured only for an expert with the stage `reinforce`; write'
        " `loss`, or `select: last`",
    ),
    (
        {"moe.max_epsilon": 8, "experts.banker.privacy.enabled": False},
        "moe.max_epsilon: 8.0 cannot be kept: `banker.sft` will claim no ε, with privacy off or reproducible;"
        " change that, or remove the limit",
    ),
    (
        {"moe.max_epsilon": 8, "defaults.sft.privacy.mode": "reproducible"},
        "moe.max_epsilon: 8.0 cannot be kept: `banker.sft`, `investor.sft`, `everything.sft` will claim no ε,"
        " with privacy off or reproducible; change that, or remove the limit",
    ),
    ({"moe.max_epsilon": 0}, "moe.max_epsilon: 0 is not a number above 0"),
    (
        {"experts.banker.sft.max_seq_len": 1024},
        "experts.banker.sft.max_seq_len: 1024 is longer than the base can read, which is 512 tokens",
    ),
    (
        {"experts.banker.routing.always_active": True},
        "experts.everything.routing.always_active: `banker` is always active already; at most one expert can be the"
        " fallback: set one of them to false",
    ),
    (
        {"experts.banker.routing.keywords": []},
        "experts.banker.routing.keywords: none are given, so no question would reach this expert; list some, or set"
        " routing.always_active: true",
    ),
    (
        {"experts.banker.routing.keywords": ["Straße", "loan", "STRASSE"]},
        'experts.banker.routing.keywords[2]: "STRASSE" is the same keyword as "Straße"; it would count twice: keep one',
    ),
    (
        {"experts.banker.routing.keywords": ["bank", "bank"]},
        'experts.banker.routing.keywords: "bank" stands twice in the list; name each once',
    ),
    # The base.
    (
        {"base": {"name": "dmeo"}},
        'base.name: "dmeo" is neither `demo`, nor an existing folder, nor a hub id such as `Qwen/Qwen2.5-1.5B`;'
        " did you mean `demo`?",
    ),
    (
        {"base": {"name": "org/model"}},
        'base.revision: it is missing: "org/model" is no folder here, so it is a hub id, and needs the commit to use'
        " (40 hexadecimal digits, shown on the model's page under its files)",
    ),
    (
        {"base": {"name": "org/model", "revision": "main"}},
        'base.revision: "main" is not a commit of 40 hexadecimal digits',
    ),
    (
        {"base": {"name": "org/Demo", "revision": COMMIT}},
        "base.key: `demo` is kept for the demo base; give another key",
    ),
    (
        {"base": {"name": "org/model", "revision": COMMIT, "key": "a/b"}},
        'base.key: "a/b" is not lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit',
    ),
    ({"base.revision": COMMIT}, "base.revision: the demo base has no revision; remove it, or name a hub model"),
    (
        {"base.demo.heads": 3},
        "base.demo.heads: 3 heads do not cut hidden_size, which is 128, into heads of an even width",
    ),
    (
        {
            "base": {"name": "org/model", "revision": COMMIT, "model_type": "gpt2"},
            "defaults.adapter.target_modules": ["c_attn", "q_proj"],
        },
        'defaults.adapter.target_modules[1]: "q_proj" is not a linear module of gpt2; did you mean `c_proj`?',
    ),
    # The serving engine's limits.
    (
        {"moe.he_config.poly_modulus_degree": 4096, "moe.he_config.coeff_modulus_bits": [50, 20, 40]},
        "moe.he_config.coeff_modulus_bits: [50, 20, 40] sums to 110 bits; a ring of 4096 allows at most 109 at 128-bit"
        " security: use fewer bits or a larger ring",
    ),
    (
        {"moe.he_config.coeff_modulus_bits": [60, 15, 60]},
        "moe.he_config.coeff_modulus_bits: a prime of 15 bits does not exist for a ring of 16384; each needs at least"
        " 16 bits",
    ),
    (
        {"moe.he_config.scale_bits": 60},
        "moe.he_config.scale_bits: 60 leaves no bits for the integer part; it must be below the first of"
        " coeff_modulus_bits, which is 60",
    ),
    (
        {"moe.gatelink_config.dp_epsilon": 11},
        "moe.gatelink_config.dp_epsilon: one query's budget of 11.0 is above max_epsilon, the budget of all, which is"
        " 10.0",
    ),
]


@pytest.mark.parametrize(("changes", "line"), ONE_MISTAKE, ids=[next(iter(changes)) for changes, _ in ONE_MISTAKE])
def test_a_mistake_is_told_in_one_line(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    found = mistakes(changed(changes), tmp_path)
    assert found == [line]


def test_the_configuration_the_mistakes_start_from_is_sound(tmp_path: Path) -> None:
    assert [expert.name for expert in resolve(SOUND, root=tmp_path).experts] == ["banker", "investor", "everything"]


PUBLIC = {"public_evaluation": True}
OFF, ON = {"enabled": False}, {"enabled": True}


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, False),
        ({"datasets.files": PUBLIC}, True),
        ({"experts.banker.privacy": OFF}, True),
        ({"experts.banker.privacy": OFF, "experts.banker.sft.privacy": ON}, False),
        ({"experts.banker.privacy": OFF, "experts.banker.reinforce.privacy": ON}, False),
        ({"experts.banker.select": "last"}, True),
        # Reinforcement that is configured, but is no stage of the chain.
        (
            {"experts.banker.privacy": OFF, "experts.banker.stages": ["sft"], "experts.banker.reinforce.privacy": ON},
            True,
        ),
    ],
)
def test_the_best_stage_is_chosen_by_private_records_only_without_privacy(
    changes: dict[str, Any], allowed: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text("instruction,output\n")
    document = changed(
        {
            "datasets.files": {"source": "files", "paths": ["mine.csv"]},
            "experts.banker": {"dataset": "files", "stages": ["sft", "reinforce"], "routing": {"keywords": ["bank"]}},
            "experts.banker.select": "best",
            "experts.banker.select_metric": "loss",
        }
    )
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = {**place[last], **value} if isinstance(place.get(last), dict) else value
    if allowed:
        assert resolve(document, root=tmp_path).by_name["banker"].stages
    else:
        assert [line.partition(":")[0] for line in mistakes(document, tmp_path)] == ["experts.banker.select"]


def test_the_best_reward_needs_a_stage_that_measures_one(tmp_path: Path) -> None:
    document = changed({"experts.banker.select": "best", "experts.banker.stages": ["sft", "reinforce"]})
    assert resolve(document, root=tmp_path).by_name["banker"].select_metric == "reward"
    document["experts"]["banker"] |= {"stages": ["sft"], "select_metric": "loss"}
    assert resolve(document, root=tmp_path).by_name["banker"].select == "best"


def test_an_answer_may_be_one_token_shorter_than_its_sequence(tmp_path: Path) -> None:
    reinforce = {"max_new_tokens": 63, "max_seq_len": 64, "warmup_steps": 9, "total_steps": 9}
    document = changed({"defaults.reinforce": reinforce, "experts.banker.stages": ["sft", "reinforce"]})
    assert resolve(document, root=tmp_path).by_name["banker"].stage("reinforce").max_new_tokens == 63


def test_a_rollout_batch_must_be_smaller_than_the_data_under_privacy(tmp_path: Path) -> None:
    document = changed(
        {"experts.banker.stages": ["sft", "reinforce"], "experts.banker.reinforce.rollout_batch_size": 100}
    )
    settings = resolve(document, root=tmp_path)
    check_dataset_sizes(settings, {"banking": 101})
    with pytest.raises(UserError, match=r"experts\.banker\.reinforce: .* lower rollout_batch_size, or add data"):
        check_dataset_sizes(settings, {"banking": 100})


def test_all_mistakes_leave_at_once_each_on_a_line(tmp_path: Path) -> None:
    document = changed(
        {
            "sed": 1,
            "experts.banker.sft.learning_rate": "1e-4",
            "experts.banker.dataset": "bankng",
            "experts.investor.adapter.rank": 64,
            "datasets.banking.records": 5,
            "moe.gatelink_config.dp_epsilon": 99,
        }
    )
    found = mistakes(document, tmp_path)
    assert [line.partition(":")[0] for line in found] == [
        "sed",
        "datasets.banking.records",
        "experts.banker.sft.learning_rate",
        "experts.banker.dataset",
        "experts.investor.adapter.rank",
        "moe.gatelink_config.dp_epsilon",
    ]


def test_a_mistake_in_the_defaults_is_told_once_however_many_experts_inherit_it(tmp_path: Path) -> None:
    assert len(mistakes(changed({"defaults.adapter.target_modules": ["nothing"]}), tmp_path)) == 1


def test_what_hangs_on_a_mistaken_value_is_not_a_second_mistake(tmp_path: Path) -> None:
    changes = {"defaults.sft.max_steps": "many", "defaults.sft.warmup_steps": 2500}
    assert [line.partition(":")[0] for line in mistakes(changed(changes), tmp_path)] == ["defaults.sft.max_steps"]


def test_a_mistake_in_overrides_is_placed_there(tmp_path: Path) -> None:
    found = mistakes(changed({"overrides.datasets.banking.domai": "x", "overrides.base.dtype": "int8"}), tmp_path)
    assert found == [
        'overrides.base.dtype: "int8" is not one of `auto`, `float32`, `bfloat16`',
        "overrides.datasets.banking.domai: no such setting; did you mean `domain`?",
    ]


def test_a_cross_mistake_in_overrides_is_placed_there(tmp_path: Path) -> None:
    document = changed({"overrides.datasets.banking": {"source": "files", "paths": ["none.csv"]}})
    assert mistakes(document, tmp_path)[0].startswith(
        'overrides.datasets.banking.paths[0]: "none.csv" is not an existing'
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_that_a_table_lacks_is_found_before_the_first_job(ending: str, tmp_path: Path) -> None:
    """It was found when the records were read, after the base had been made."""
    path = tmp_path / f"mine.{ending}"
    if ending == "csv":
        path.write_text("question,output,customer\nWhat?,That.,c1\n")
    else:
        parquet.write_table(pyarrow.table({"question": ["What?"], "output": ["That."], "customer": ["c1"]}), path)
    dataset = {"source": "files", "paths": [path.name], "unit": "custmer"}
    (found,) = [line for line in mistakes(changed({"datasets.banking": dataset}), tmp_path) if ".paths" in line]
    assert found == (
        f"datasets.banking.paths[0]: {path.name} has no column 'instruction', 'custmer' (it has 'question', 'output',"
        " 'customer'): correct `fields.instruction`, `unit`"
    )
    fixed = dataset | {"unit": "customer", "fields": {"instruction": "question"}}
    assert not any(".paths" in line for line in mistakes(changed({"datasets.banking": fixed}), tmp_path))


def test_what_overrides_replace_is_not_checked(tmp_path: Path) -> None:
    document = changed(
        {
            "base": {"name": "org/model"},
            "datasets.banking": {"source": "files", "paths": ["none.csv"]},
            "overrides.base.name": "demo",
            "overrides.datasets.banking": {"source": "demo"},
        }
    )
    assert resolve(document, root=tmp_path).base.name == "demo"


def test_combined_datasets_in_a_circle_are_each_named(tmp_path: Path) -> None:
    document = changed({"datasets.both.of": ["more"], "datasets.more": {"source": "combined", "of": ["both"]}})
    assert [line.partition(":")[0] for line in mistakes(document, tmp_path)] == ["datasets.both.of", "datasets.more.of"]


@pytest.mark.parametrize(("degree", "bits"), MODULUS_BITS.items())
def test_the_modulus_may_reach_the_standards_bound_but_not_pass_it(degree: int, bits: int, tmp_path: Path) -> None:
    def configuration(total: int) -> dict[str, Any]:
        count = -(-total // 60)
        primes = [total // count + (place < total % count) for place in range(count)]
        he = {"poly_modulus_degree": degree, "coeff_modulus_bits": primes, "scale_bits": 20}
        return changed({"moe.he_config": he})

    assert resolve(configuration(bits), root=tmp_path).moe.he_config.poly_modulus_degree == degree
    assert "at 128-bit security" in mistakes(configuration(bits + 1), tmp_path)[0]


def test_a_folder_is_checked_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    document = changed({"base": {"name": "model"}, "defaults.sft.max_seq_len": 256})
    assert "is not a model folder" in mistakes(document, tmp_path)[0]
    config = {"model_type": "gpt2", "n_positions": 128}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    document["defaults"]["adapter"] = {"target_modules": ["c_attn"]}
    assert mistakes(document, tmp_path) == [
        "defaults.sft.max_seq_len: 256 is longer than the base can read, which is 128 tokens"
    ]
    document["base"] |= {"model_type": "llama", "revision": COMMIT}
    found = mistakes(document, tmp_path)
    assert found[0].startswith('base.revision: "model" is a folder, and a folder has no revision')
    assert found[1].startswith('base.model_type: "llama" is not what the folder\'s config.json says, which is "gpt2"')


def test_an_unknown_architecture_is_left_to_the_loading(tmp_path: Path) -> None:
    base = {"name": "org/model", "revision": COMMIT, "model_type": "brand_new"}
    document = changed({"base": base, "defaults.adapter.target_modules": ["anything"]})
    assert resolve(document, root=tmp_path).experts[0].adapter.target_modules == ("anything",)


def test_privacy_needs_a_batch_smaller_than_the_data_and_a_delta_below_one_over_n(tmp_path: Path) -> None:
    settings = resolve(changed({"experts.investor.privacy": {"enabled": False}}), root=tmp_path)
    check_dataset_sizes(settings, {"banking": 17, "investment": 2, "both": 99_999})
    with pytest.raises(UserError) as caught:
        check_dataset_sizes(settings, {"banking": 16, "investment": 2, "both": 100_000})
    assert str(caught.value).split("\n  ")[1:] == [
        "experts.banker.sft: the logical batch is 16, but dataset `banking` has 16 units to train on; under privacy the"
        " expected batch must be smaller than the dataset: lower batch_size, or add data",
        "experts.everything.sft: privacy.delta is 1e-05, but dataset `both` has 100000 units to train on; it must be"
        " below 1/100000, or publishing one whole record would count as private",
    ]


def test_an_upper_bound_of_the_units_says_nothing_about_delta(tmp_path: Path) -> None:
    settings = resolve(SOUND, root=tmp_path)
    check_dataset_sizes(settings, {"both": 200_000}, exact=False)
    with pytest.raises(UserError, match="has at most 10 units"):
        check_dataset_sizes(settings, {"both": 10}, exact=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3\n",
            "x.yaml, line 3: the key `a` stands twice in this mapping (first on line 1); keep one of",
        ),
        ("a:\n  b: {c: 1, c: 2}\n", "x.yaml, line 2: the key `c` stands twice"),
        ("1: x\n", "x.yaml, line 1: the key `1` is not text; put it in quotes"),
        ("true: x\n", "x.yaml, line 1: the key `true` is not text"),
        ("[a]: x\n", "x.yaml, line 1: the key (a list) is not text"),
        ("a: [1\nb: 2\n", "x.yaml, line 2: this is not YAML we can read"),
        ("a: !!python/object/apply:os.getcwd []\n", "x.yaml, line 1: this is not YAML we can read"),
        ("a: 1\n---\nb: 2\n", "x.yaml, line 2: this is not YAML we can read"),
        ("- a\n", "x.yaml: a configuration is a mapping of settings (`seed: 42`), not a list"),
        ("only words\n", "x.yaml: a configuration is a mapping of settings (`seed: 42`), not a single value"),
        ("a: &x\n  b: *x\n", "x.yaml, line 1: this part contains itself through an alias"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_text(text, origin="x.yaml")
    assert str(caught.value).startswith(message)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the configuration .*none\.yaml: No such file"):
        load([tmp_path / "none.yaml"], root=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(UserError, match=r"latin\.yaml is not UTF-8 text \(byte 3\)"):
        load([tmp_path / "latin.yaml"], root=tmp_path)


@pytest.mark.parametrize(
    ("extra", "key"),
    [({"base": {"name": "demo"}}, "base"), ({"sft.max_steps": "5"}, "sft.max_steps"), ({"seed": [1]}, "seed")],
)
def test_nested_settings_on_the_command_line_are_sent_to_a_file(
    extra: dict[str, Any], key: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load([], root=tmp_path, extra=extra)
    assert str(caught.value) == (
        f"--config {key}=…: only seed and device can be given this way; for every other setting write a second file and"
        " pass both: `--configfile config/config.yaml my.yaml --`"
    )


def _keys_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [path, *(found for key, item in value.items() for found in _keys_of(item, (*path, key)))]


_FULL = changed(
    {
        "seed": 1,
        "experts.banker.adapter": {"rank": 4, "target_modules": ["q_proj"]},
        "experts.banker.sft": {"micro_batch_size": 2, "gradient_accumulation": 2, "warmup_steps": 1, "privacy": {}},
        "moe": {"he_config": {"scale_bits": 40, "coeff_modulus_bits": [60, 60]}, "gatelink_config": {"max_epsilon": 9}},
        "overrides": {"base": {"name": "demo"}, "datasets": {"banking": {"records": 99}}, "sft": {"max_steps": 3}},
    }
)
_ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "sft", "source", "of", "name"]), inner)
    ),
    max_leaves=4,
)


@hypothesis.settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(_keys_of(_FULL)[1:]), _ANYTHING), min_size=1, max_size=3))
def test_whatever_stands_in_a_configuration_is_accepted_or_told(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    document = copy.deepcopy(_FULL)
    for path, value in changes:
        place: Any = document
        for key in path[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value
    told = ""
    try:
        assert resolve(document, root=Path("/nonexistent")).experts
    except UserError as error:
        told = str(error)
    assert not told or re.match(r"[0-9]+ mistakes? in the configuration:\n  \S", told)


def test_recomputation_is_refused_where_the_adapters_engine_cannot(tmp_path: Path, monkeypatch: Any) -> None:
    document = changed({"defaults.sft.gradient_checkpointing": "on"})
    resolve(document, root=tmp_path)
    monkeypatch.setattr(Lora, "engine", lambda self, base: "one_by_one" if is_quantized(base) else "vmap")
    (told,) = mistakes(document, tmp_path)
    assert told.startswith(
        "defaults.sft.gradient_checkpointing: `on` cannot be kept: under privacy, the gradients of a"
    )
    for change in ({"defaults.sft.gradient_checkpointing": "auto"}, {"defaults.privacy": {"enabled": False}}):
        resolve({**document, "defaults": changed(change)["defaults"]}, root=tmp_path)
    hub = {"base": {"name": "org/model", "revision": COMMIT, "model_type": "qwen2"}}
    resolve({**document, **hub}, root=tmp_path)  # only its config.json would tell
    (tmp_path / "model").mkdir()
    config = {"model_type": "qwen2", "quantization_config": {"load_in_4bit": True}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    resolve({**document, "base": {"name": "model"}}, root=tmp_path)
    wrong = {**document, "defaults": {**document["defaults"], "adapter": {"kind": "lra"}}}
    (told,) = mistakes(wrong, tmp_path)
    assert told.startswith("defaults.adapter.kind: "), "which engine it would be, is not known"
