"""From a run to its package: what it contains, what stays out, and that the bytes depend on nothing else."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from sealed_experts.errors import UserError
from sealed_experts.packages.content.linter import read_adapter_config
from sealed_experts.packages.content.package_content import package_content
from sealed_experts.packages.content.tensors import read_tensors
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.report import VerifiedPackage
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.packages.tgsp.package import open_bytes
from sealed_experts.privacy.ledger.published_receipt import receipt_bytes
from tests.attacks import building

ROOT = Path(__file__).resolve().parents[3]


def opened(**changes) -> VerifiedPackage:
    return open_bytes(building.package(**changes), trust=building.trust())


def test_the_manifest_says_what_the_inputs_say():
    manifest = opened().manifest
    assert manifest["base"] == {
        "name": "tiny",
        "revision": None,
        "digest": "b" * 64,
        "quantization": None,
        "rope_scaling": None,
    }
    assert manifest["adapter"] == {
        "kind": "lora",
        "settings": {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        "size": len(building.weights()),
        "digest": hashlib.sha256(building.weights()).hexdigest(),
    }
    assert manifest["perf"] == {"size": 32 * 4, "parameters": 32}
    assert manifest["routing"]["keywords"] == ["loan", "deposit rate"]
    assert manifest["training"] == {
        "datasets": [{"hmac_sha256": building.inputs().names.of_data("e" * 64)}],
        "stages": ["sft"],
        "selected_stage": "sft",
        "selection_reason": "the only stage",
        "steps": 60,
        "stopped_reason": "max_steps",
        "settings": {
            "learning_rate": 0.005,
            "batch_size": 128,
            "max_seq_len": 256,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.01,
        },
    }
    assert manifest["privacy"] == {"epsilon": 4.2, "delta": 1e-5, "mode": "release", "unit": "record"}


def evaluation(**changes) -> dict:
    """evaluation.json of a chain of one stage without a reward."""
    about = {"metric": "loss", "title": "Held-out loss", "unit": "nats per token", "higher_is_better": False}
    part = {**about, "metric": "loss.owners_word"}
    base = {"mean": 3.125, "low": 3.0, "high": 3.25}
    sft = {"mean": 2.0625, "low": 2.03125, "high": 2.09375, **changes}
    return {
        "expert": "tiny_expert",
        "intervals": {"confidence": 0.95},
        "metrics": [about, part],
        "models": {
            name: {"metrics": {"loss": one, part["metric"]: one}} for name, one in (("base", base), ("sft", sft))
        },
    }


PUBLIC = building.run(public_evaluation=True, dataset="questions")
PRIVATE = ["7654", "987654", "424242", "3.125", "2.0625", "2.03125", "1.984375", "d" * 64, "e" * 64]


def test_counts_losses_seeds_and_digests_of_private_data_stay_out():
    """The test searches every byte of the file, not only the likely fields."""
    data = building.package()
    assert json.dumps(building.metrics()).count("7654") >= 1
    for secret in PRIVATE:
        assert secret in json.dumps(building.metrics())
        assert secret.encode() not in data


def test_held_out_numbers_are_published_only_where_the_dataset_says_so():
    assert opened().manifest["quality"]["published"] is False
    public = opened(settings=PUBLIC, evaluation=evaluation()).manifest["quality"]
    loss = {
        "metric": "loss",
        "title": "Held-out loss",
        "unit": "nats per token",
        "higher_is_better": False,
        "value": 2.0625,
        "base_value": 3.125,
        "interval": {"low": 2.03125, "high": 2.09375, "confidence": 0.95},
    }
    assert public == {"published": True, "metrics": [loss]}
    few = opened(settings=PUBLIC, evaluation=evaluation(low=None, high=None)).manifest["quality"]
    assert few == {"published": True, "metrics": [{**loss, "interval": None}]}
    for unmeasured in (None, evaluation(mean=None)):
        quality = opened(settings=PUBLIC, evaluation=unmeasured).manifest["quality"]
        assert quality == {"published": False, "reason": "no measurements on held-out records"}


def test_an_evaluation_of_private_records_stays_out_even_if_it_is_given():
    data = building.package(evaluation=evaluation())
    assert b"2.09375" not in data
    assert b"2.09375" in building.package(settings=PUBLIC, evaluation=evaluation())


def test_an_evaluation_of_another_expert_is_refused():
    with pytest.raises(UserError, match="the evaluation is of other, not of tiny_expert"):
        package_content(building.inputs(settings=PUBLIC, evaluation={**evaluation(), "expert": "other"}))


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        (
            {"mode": "reproducible", "epsilon": None, "reason": "the seed reveals the noise"},
            {"epsilon": None, "delta": 1e-5, "mode": "reproducible", "unit": "record"},
        ),
        (
            {"enabled": False, "mode": None, "epsilon": None, "delta": None, "events": [], "reason": "privacy is off"},
            {"epsilon": None, "delta": None, "mode": "none", "unit": "record"},
        ),
    ],
)
def test_without_a_claim_the_manifest_says_why(changes, summary):
    package = opened(privacy=building.privacy(**changes))
    assert package.manifest["privacy"] == {**summary, "reason": changes["reason"]}
    assert f"No privacy is claimed: {changes['reason']}" in package.members["README.md"].decode()


def test_the_noise_keys_id_stays_out_where_it_follows_from_the_data():
    """A reproducible run's key follows from its fingerprint, so the id would allow to test a guess at the data."""
    release = json.loads(receipt_bytes(building.privacy()))
    reproducible = json.loads(receipt_bytes(building.privacy(mode="reproducible", epsilon=None, reason="seed")))
    assert release["events"][0]["key_id"] == "0" * 32
    assert "key_id" not in reproducible["events"][0]
    assert "key_id" not in release
    assert "key_id" not in reproducible


def test_an_unknown_field_of_the_privacy_record_stays_out():
    assert "journal" not in json.loads(receipt_bytes(building.privacy(journal=[1, 2, 3])))


def test_a_privacy_record_that_is_no_receipt_is_refused():
    with pytest.raises(UserError, match="lacks events"):
        receipt_bytes({"enabled": True, "epsilon": 1.0})


def test_an_adapter_of_another_base_is_refused():
    with pytest.raises(UserError, match="train it again on this base"):
        package_content(building.inputs(base={"name": "tiny", "revision": None, "digest": "c" * 64}))


def test_a_missing_input_is_named():
    with pytest.raises(UserError, match="'reason'"):
        package_content(building.inputs(selection={"stage": "sft", "candidates": ["sft"]}))


def test_settings_that_contradict_the_adapter_are_refused_at_sealing():
    with pytest.raises(PackageError, match=r"adapter\.settings\.alpha is 4.0, but the adapter's files say 8"):
        building.package(adapter_config=building.adapter_config(lora_alpha=8))


def test_a_description_of_several_lines_becomes_one():
    assert opened(settings=building.run(description=" a\n\tb \n")).manifest["description"] == "a b"


def test_the_model_card_cannot_carry_markup():
    routing = RoutingSettings(keywords=("<script>", "[x](javascript:y)", "`|`"))
    card = opened(settings=building.run(routing=routing, description="<b>bold</b>")).members["README.md"].decode()
    assert "<script>" not in card
    assert "<b>" not in card
    assert "[x](" not in card


def test_the_fallback_expert_may_have_no_keywords():
    card = opened(settings=building.run(routing=RoutingSettings(always_active=True))).members["README.md"].decode()
    assert "Called by: no keyword. It also answers" in card


# Unpacking


def test_unpack_writes_the_members_and_the_manifest(tmp_path):
    package = opened()
    building.unpack(building.package(), tmp_path / "deep" / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "out").iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    assert found == package.members
    assert manifest == package.manifest
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_unpack_refuses_a_name_that_is_taken(kind, tmp_path):
    target = tmp_path / "out"
    {"folder": target.mkdir, "file": target.touch, "dangling link": lambda: target.symlink_to("nowhere")}[kind]()
    with pytest.raises(UserError, match="exists"):
        building.unpack(building.package(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Against the libraries that write and read these files


def test_files_of_the_safetensors_library_are_read():
    from safetensors.numpy import save

    arrays = {"b.x": np.arange(6, dtype="<f4").reshape(2, 3), "a.y": np.ones(4, dtype="<f2")}
    found = read_tensors(save(arrays, metadata={"format": "pt"}), member="weights")
    assert {name: tensor.shape for name, tensor in found.items()} == {"b.x": (2, 3), "a.y": (4,)}


def test_every_key_that_peft_writes_is_known_and_a_package_loads_in_peft(tmp_path, tiny_base):
    """Another version of PEFT may write other keys: this test would notice it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sealed_experts.models.adapters.lora import Lora
    from sealed_experts.models.attachment import adapter_state, attach_adapter
    from sealed_experts.training.peft_folder import adapter_config_bytes

    settings = Lora(rank=2, alpha=4, target_modules=("q_proj", "v_proj"))
    name = f"local:tiny@sha256:{'b' * 64}"
    config = adapter_config_bytes(settings, base_name=name, revision=None, task_type="CAUSAL_LM")
    assert read_adapter_config(config).adapter == settings
    trained = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_base.parent), settings, seed=1)
    arrays = {name: tensor.numpy() for name, tensor in adapter_state(trained).items()}
    building.unpack(building.package(adapter_config=config, adapter_weights=building.weights(arrays)), tmp_path / "out")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base.parent), tmp_path / "out")
    state = adapter_state(loaded)
    assert state.keys() == arrays.keys()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in arrays.items())
