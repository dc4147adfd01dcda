"""Resolving and parsing settings, and the shipped configurations."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sealed_experts.configuration.resolution import load, resolve
from sealed_experts.data.sources import SOURCES
from sealed_experts.data.sources.demo import Demo
from sealed_experts.data.sources.files import Files
from sealed_experts.errors import UserError
from sealed_experts.models.adapters import KINDS
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.architectures import MODULES
from sealed_experts.models.bases import base_key, base_kind
from sealed_experts.models.settings import BaseSettings
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.rewards import REWARDS
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.fields import plain
from sealed_experts.settings.merging import merge
from sealed_experts.training.objectives import STAGES
from sealed_experts.training.objectives.sft import Sft

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
KEYWORDS = {"routing": {"keywords": ["x"]}}


def configuration(**layers: Any) -> dict[str, Any]:
    expert = {"dataset": "d", **KEYWORDS, **layers.pop("expert", {})}
    return {"datasets": {"d": {"source": "demo"}}, "experts": {"e": expert}, **layers}


def resolved_sft(**layers: Any) -> Sft:
    return resolve(configuration(**layers), root=ROOT).experts[0].stage("sft")


def privacy(noise: float) -> dict[str, Any]:
    return {"noise_multiplier": noise}


# From the strongest to the weakest.
PRIVACY_LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("overrides", {"sft": {"privacy": privacy(7)}}),
    ("overrides", {"privacy": privacy(6)}),
    ("expert", {"sft": {"privacy": privacy(5)}}),
    ("expert", {"privacy": privacy(4)}),
    ("defaults", {"sft": {"privacy": privacy(3)}}),
    ("defaults", {"privacy": privacy(2)}),
]


@pytest.mark.parametrize("strongest", range(len(PRIVACY_LAYERS) + 1))
def test_privacy_comes_from_the_strongest_layer_and_there_from_the_stage(strongest: int) -> None:
    layers: dict[str, Any] = {}
    for name, part in PRIVACY_LAYERS[strongest:]:
        layers[name] = merge(layers.get(name, {}), part)
    built_in = PrivacySettings().noise_multiplier
    expected = [7, 6, 5, 4, 3, 2, built_in][strongest]
    assert resolved_sft(**layers).privacy.noise_multiplier == expected


def test_layers_mix_setting_by_setting() -> None:
    found = resolved_sft(
        defaults={"sft": {"max_steps": 10, "eval_steps": 5, "learning_rate": 0.1}, "privacy": {"delta": 1e-6}},
        expert={"sft": {"max_steps": 20, "eval_steps": 6}, "privacy": {"max_grad_norm": 0.5}},
        overrides={"sft": {"max_steps": 30}},
    )
    assert (found.max_steps, found.eval_steps, found.learning_rate) == (30, 6, 0.1)
    assert (found.privacy.delta, found.privacy.max_grad_norm) == (1e-6, 0.5)


def test_adapter_and_template_follow_the_layers_and_lists_are_replaced() -> None:
    layers = {
        "defaults": {"template": "chatml", "adapter": {"rank": 4, "target_modules": ["q_proj", "k_proj"]}},
        "expert": {"adapter": {"target_modules": ["v_proj"]}},
        "overrides": {"template": "alpaca", "adapter": {"alpha": 3}},
    }
    expert = resolve(configuration(**layers), root=ROOT).experts[0]
    assert expert.template == "alpaca"
    assert expert.adapter == Lora(rank=4, alpha=3, target_modules=("v_proj",))


@pytest.mark.parametrize(
    ("layers", "batch"),
    [
        ({}, 8),
        ({"defaults": {"sft": {"batch_size": 5}}}, 5),
        ({"defaults": {"sft": {"micro_batch_size": 2, "gradient_accumulation": 3}}}, 6),
        (
            {
                "defaults": {"sft": {"batch_size": 5}},
                "expert": {"sft": {"micro_batch_size": 2, "gradient_accumulation": 3}},
            },
            6,
        ),
        (
            {
                "defaults": {"sft": {"micro_batch_size": 2, "gradient_accumulation": 3}},
                "overrides": {"sft": {"batch_size": 5}},
            },
            5,
        ),
        (
            {
                "defaults": {"sft": {"micro_batch_size": 2, "gradient_accumulation": 3}},
                "expert": {"sft": {"micro_batch_size": 4}},
            },
            12,
        ),
    ],
)
def test_a_layer_replaces_the_other_spelling_of_the_logical_batch(layers: dict[str, Any], batch: int) -> None:
    assert resolved_sft(**layers).logical_batch == batch


def test_experts_keep_the_configurations_order() -> None:
    experts = {name: {"dataset": "d", **KEYWORDS} for name in ("zebra", "ant", "mule")}
    settings = resolve({"datasets": {"d": {"source": "demo"}}, "experts": experts}, root=ROOT)
    assert [expert.name for expert in settings.experts] == ["zebra", "ant", "mule"]


def test_a_mixture_without_a_fallback_is_allowed() -> None:
    assert not any(expert.routing.always_active for expert in resolve(configuration(), root=ROOT).experts)


def test_reproducible_privacy_is_allowed() -> None:
    assert resolved_sft(defaults={"privacy": {"mode": "reproducible"}}).privacy.mode == "reproducible"


def test_seed_and_device_may_come_from_the_command_line() -> None:
    for extra in ({"seed": "7", "device": "cpu"}, {"seed": 7, "device": "cpu"}):
        settings = load([CONFIG / "config.yaml"], root=ROOT, extra=extra)
        assert (settings.seed, settings.device) == (7, "cpu")
    with pytest.raises(UserError, match='seed: "many" is not a whole number'):
        load([CONFIG / "config.yaml"], root=ROOT, extra={"seed": "many"})


def test_the_demo_configuration_is_what_the_design_says() -> None:
    settings = load([CONFIG / "config.yaml"], root=ROOT)
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert {expert.name: expert.adapter.target_modules for expert in settings.experts} == {
        "banking_expert": attention,
        "investment_expert": attention,
        "shared_attention": (*attention, "gate_proj", "up_proj"),
    }
    assert {expert.name: expert.dataset for expert in settings.experts} == {
        "banking_expert": "banking",
        "investment_expert": "investment",
        "shared_attention": "combined",
    }
    assert [expert.name for expert in settings.experts if expert.routing.always_active] == ["shared_attention"]
    assert {expert.stages for expert in settings.experts} == {("sft", "reinforce")}
    assert {
        stage.threads for expert in settings.experts for stage in (expert.stage("sft"), expert.stage("reinforce"))
    } == {1}


def test_the_full_size_configuration_has_exactly_its_numbers(tmp_path: Path) -> None:
    for name in ("banking", "investment"):
        path = tmp_path / "data" / "finance" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settings = load([CONFIG / "finance-qwen2.5-1.5b.yaml"], root=tmp_path)
    assert (settings.base.name, base_key(settings.base)) == ("Qwen/Qwen2.5-1.5B", "qwen2.5-1.5b")
    assert settings.base.revision == "8faed761d45a263340a0528343f099c05c9a4323"
    for expert in settings.experts:
        assert (expert.adapter.kind, expert.adapter.rank, expert.adapter.alpha) == ("lora", 32, 64)
        sft = expert.stage("sft")
        assert (sft.weight_decay, sft.max_grad_norm, sft.learning_rate) == (0.01, 1.0, 1e-4)
        assert (sft.micro_batch_size, sft.gradient_accumulation, sft.logical_batch) == (1, 8, 8)
        assert (sft.max_steps, sft.max_seq_len) == (2000, 512)
        assert (sft.checkpoint_steps, sft.keep_checkpoints, sft.log_steps) == (250, 2, 25)
        assert sft.gradient_checkpointing == "auto"
        assert (sft.privacy.enabled, sft.privacy.mode) == (True, "release")
        assert (sft.privacy.noise_multiplier, sft.privacy.target_epsilon, sft.privacy.delta) == (1.0, 8.0, 1e-5)
        assert expert.stages == ("sft", "reinforce")
        rl = expert.stage("reinforce")
        assert (rl.learning_rate, rl.rollout_batch_size, rl.total_steps, rl.reward) == (1e-5, 1, 500, "finance")
        assert (rl.max_new_tokens, rl.temperature, rl.top_p, rl.reward_scale) == (64, 0.7, 0.9, 1.0)
        assert (rl.baseline_decay, rl.kl_coef, rl.entropy_coef) == (0.99, 0.01, 0.01)
        assert (rl.eval_steps, rl.checkpoint_steps) == (50, 100)
        assert (rl.privacy.noise_multiplier, rl.privacy.target_epsilon) == (1.0, 8.0)
    assert plain(settings.moe) == {
        "he_config": {
            "scheme": "ckks",
            "poly_modulus_degree": 16384,
            "coeff_modulus_bits": [60, 40, 40, 60],
            "scale_bits": 40,
            "use_column_packing": True,
        },
        "gatelink_config": {"dp_epsilon": 1.0, "max_epsilon": 10.0, "max_lora_rank": 32},
        "max_epsilon": None,
    }


def test_the_full_size_configuration_alone_asks_for_its_data(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load([CONFIG / "finance-qwen2.5-1.5b.yaml"], root=tmp_path)
    assert str(caught.value).count("is not an existing file") == 2


@pytest.mark.parametrize("name", ["finance-qwen2.5-1.5b.yaml", "config.yaml"])
def test_the_overlay_makes_a_configuration_run_without_network_and_data(name: str, tmp_path: Path) -> None:
    small = load([CONFIG / name, CONFIG / "demo.yaml"], root=tmp_path)
    demo = load([CONFIG / "config.yaml"], root=ROOT)
    assert small.base == demo.base
    assert small.datasets == demo.datasets
    assert [expert.stage("sft").logical_batch for expert in small.experts] == [128, 128, 128]
    assert [expert.stage("sft").max_steps for expert in small.experts] == [60, 60, 60]
    assert [expert.stage("reinforce") for expert in small.experts] == [
        expert.stage("reinforce") for expert in demo.experts
    ]
    assert [expert.adapter.rank for expert in small.experts] == [8, 8, 8]
    assert [expert.adapter.target_modules for expert in small.experts] == [
        expert.adapter.target_modules for expert in demo.experts
    ]


def test_the_overlay_alone_is_no_configuration() -> None:
    with pytest.raises(UserError, match="experts: it is missing"):
        load([CONFIG / "demo.yaml"], root=ROOT)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("demo", "demo"),
        ("Qwen/Qwen2.5-1.5B", "qwen2.5-1.5b"),
        ("/models/My Model/", "my-model"),
        ("models\\Thing", "thing"),
        ("./.hidden", "hidden"),
    ],
)
def test_the_bases_key_is_the_last_part_of_its_name(name: str, key: str) -> None:
    assert base_key(BaseSettings(name=name)) == key
    assert base_key(BaseSettings(name=name, key="mine")) == "mine"


def test_a_name_that_leaves_no_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"give `base\.key`"):
        base_key(BaseSettings(name="/../"))


def test_a_folder_comes_before_a_hub_id(tmp_path: Path) -> None:
    base = BaseSettings(name="org/model")
    assert base_kind(base, root=tmp_path) == "hub"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert base_kind(base, root=tmp_path) == "folder"
    assert base_kind(BaseSettings(name="a/b/c"), root=tmp_path) is None


def test_parsing_gives_back_what_plain_gave() -> None:
    for settings in (
        Sft(batch_size=3),
        Files(paths=("a.csv",)),
        Demo(),
        BaseSettings(),
        STAGES["sft"](),
    ):
        assert parse_group(type(settings), plain(settings)) == settings
        assert parse_group(type(settings), json.dumps(plain(settings))) == settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rank": 4.5}, "rank: 4.5 is not a whole number"),
        ({"rank": True}, "rank: true is not a whole number"),
        ({"alpha": "16"}, 'alpha: "16" is not a number above 0'),
        ({"target_modules": "q_proj"}, 'target_modules: "q_proj" is not a list'),
        ({"ranks": 4}, "ranks: no such setting; did you mean `rank`?"),
        ("[]", "not a JSON object"),
        ('{"rank": 1, "rank": 2}', "not JSON: duplicate key 'rank'"),
    ],
)
def test_parsing_refuses_what_no_configuration_gives(data: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_group(Lora, data)
    assert message in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UserError, match="Files: paths: it is missing"):
        parse_group(Files, {"source": "files"})


def test_whole_numbers_may_be_spelled_with_a_point_and_numbers_without() -> None:
    adapter = parse_group(Lora, {"rank": 4.0, "alpha": 8})
    assert (adapter.rank, type(adapter.rank), type(adapter.alpha)) == (4, int, float)


def test_every_stage_is_a_setting_of_an_expert_and_has_a_place_in_each_layer() -> None:
    schema = json.loads((CONFIG / "schemas" / "config.schema.json").read_text())
    for stage in STAGES:
        for definition in ("ExpertLayer", "Layer", "Overrides"):
            assert stage in schema["$defs"][definition]["properties"]


def test_a_thousand_experts_resolve_quickly() -> None:
    experts = {
        f"e{number}": {
            "dataset": f"d{number}",
            "sft": {"learning_rate": 0.001, "max_steps": 50},
            "routing": {"keywords": [f"k{number}", "bank", "loan"]},
        }
        for number in range(1000)
    }
    document = {"datasets": {f"d{number}": {"source": "demo"} for number in range(1000)}, "experts": experts}
    started = time.process_time()
    assert len(resolve(document, root=ROOT).experts) == 1000
    assert time.process_time() - started < 5  # 0.6 s on an idle machine; the bound leaves room for a busy one


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, sealed_experts.configuration.resolution, sealed_experts.configuration.jobs;"
        "print([name for name in ('torch', 'transformers', 'numpy', 'snakemake', 'jsonschema') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "scripts"
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("model_type", sorted(MODULES))
def test_the_table_of_modules_is_transformers_own(model_type: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.pytorch_utils import Conv1D

    layers = (
        {"num_layers": 1, "attention_types": [[["global"], 1]]} if model_type == "gpt_neo" else {"num_hidden_layers": 1}
    )
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **layers))
    linear = (torch.nn.Linear, Conv1D)
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)}
    assert found == set(MODULES[model_type])


def test_every_setting_says_what_it_means() -> None:
    for group in (
        *STAGES.values(),
        *KINDS.values(),
        *SOURCES.values(),
        *REWARDS.values(),
        PrivacySettings,
        BaseSettings,
    ):
        for name, field in group.model_fields.items():
            assert (field.description or "").endswith("."), f"{group.__name__}.{name}"
