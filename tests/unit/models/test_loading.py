"""Loading a base."""

import torch
from transformers import AutoModelForCausalLM

from sealed_experts.models.loading import load_base
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
