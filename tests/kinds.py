"""Tiny bases of several architectures, with adapters of every kind, built only with PEFT."""

import torch

from tests.tiny import tiny_qwen2

VOCABULARY = 300
TARGETS = {
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
SCALED = {
    "qwen2": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
}
KINDS = ("lora", "lora_fa", "dora", "ia3", "prompt", "prefix")


def tiny_base(name):
    """Return a randomly initialised base without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if name == "qwen2":
        base = tiny_qwen2(vocab_size=VOCABULARY)
    elif name == "llama":
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
            )
        )
    else:
        base = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=256,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    base.config.use_cache = False
    return base


def peft_config(kind, base):
    """Return PEFT's configuration of an adapter kind on a base of `tiny_base`."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

    if kind in ("lora", "lora_fa", "dora"):
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            lora_alpha=8,
            target_modules=TARGETS[base],
            use_dora=kind == "dora",
            fan_in_fan_out=base == "gpt2",
        )
    if kind == "ia3":
        targets, feedforward = SCALED[base]
        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=targets,
            feedforward_modules=feedforward,
            fan_in_fan_out=base == "gpt2",
        )
    soft = PromptTuningConfig if kind == "prompt" else PrefixTuningConfig
    return soft(task_type="CAUSAL_LM", num_virtual_tokens=5)


def adapted(kind, base="qwen2", dtype=torch.float32):
    """Return a base in training mode with a float32 adapter whose weights differ from their initial values."""
    from peft import get_peft_model

    model = get_peft_model(tiny_base(base).to(dtype).requires_grad_(False), peft_config(kind, base))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if kind == "lora_fa" and "lora_A" in name:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.train()
