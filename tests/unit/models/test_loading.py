"""Loading a base."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from sealed_experts.errors import UserError
from sealed_experts.models.classes import CAUSAL, CLASSIFIER
from sealed_experts.models.loading import load_base
from sealed_experts.models.manifest import write_base_manifest
from tests.tiny import build_tiny_base


def test_an_architecture_without_fused_attention_loads_with_the_plain_one(tmp_path, monkeypatch):
    """Gemma 2 and Bloom are accepted by the configuration, and could not be loaded."""
    base = build_tiny_base(tmp_path / "base")
    original, asked = AutoModelForCausalLM.from_pretrained, []

    def without_fused(folder, *, attn_implementation, **keywords):
        asked.append(attn_implementation)
        if attn_implementation == "sdpa":
            raise ValueError("This model does not support an attention implementation through scaled_dot_product yet.")
        return original(folder, attn_implementation=attn_implementation, **keywords)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", without_fused)
    loaded = load_base(base.parent, device=torch.device("cpu"))
    assert asked == ["sdpa", "eager"]
    assert loaded.model.config._attn_implementation == "eager"


def test_whoever_loads_a_base_can_be_asked_to_stop_in_between(tmp_path):
    """To verify, to read and to move a large base takes minutes, after each of which a run looks for a reason."""
    base = build_tiny_base(tmp_path / "base")
    looks = iter(range(10))
    load_base(base.parent, device=torch.device("cpu"), check=lambda: next(looks))
    assert next(looks) == 2


def test_a_base_loads_as_a_classifier_whose_new_head_is_the_same_every_time(tmp_path):
    base = build_tiny_base(tmp_path / "base")
    heads = []
    for _ in range(2):
        torch.rand(3)  # whatever was drawn before
        loaded = load_base(
            base.parent, device=torch.device("cpu"), model_class=CLASSIFIER, options={"num_labels": 3}
        ).model
        assert type(loaded).__name__ == "Qwen2ForSequenceClassification"
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        heads.append(loaded.score.weight)
    assert heads[0].shape == (3, loaded.config.hidden_size)
    assert torch.equal(*heads)


def test_a_base_that_is_no_such_model_is_refused_by_name(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(build_tiny_base(tmp_path / "whole").parent, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit", "architectures": ["ViTModel"]}))
    (folder / "base.json").unlink()
    write_base_manifest(folder, name="tiny", revision=None, key="tiny", modules={}, dtype="float32")
    for model_class, noun in ((CAUSAL, "causal language model"), (CLASSIFIER, "sequence classifier")):
        with pytest.raises(UserError, match=f"is a vit model, and there is no {noun}"):
            load_base(folder, device=torch.device("cpu"), model_class=model_class)
