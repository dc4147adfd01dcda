"""What fits into the memory of a device: tokens in a physical batch, and whether activations must be recomputed.

Every answer depends on the device's total memory and on the model's shape, not on what is free now: a resumed run must
get the same answer, or it would be another run.
"""

import os
from typing import Any, Literal

import torch
from peft import PeftModel

# Bytes per token, layer and hidden unit that a decoder keeps for its backward pass, after Korthikanti et al.,
# "Reducing Activation Recomputation in Large Transformer Models" (2022), equation 2 without the attention term
# (fused attention keeps none), doubled for float32.
_ACTIVATION_FACTOR = {torch.bfloat16: 34, torch.float32: 68}
# Share of the device's memory that activations may take; the rest is weights, gradients and logits.
_SHARE = 0.5
# Bytes per token and entry of the vocabulary: float32 logits, those of a reference, and what their gradients need.
_LOGITS_FACTOR = 24
_FEWEST_TOKENS, _MOST_TOKENS = 256, 65_536
# On processors a larger batch is slower, because it leaves the caches: LoRA on SmolLM2 under privacy learned from 137
# tokens/s with 4096, 212 with 1024 and 205 with 512 (two cores).
_MOST_ON_PROCESSORS = 1024


def resolve_token_budget(wish: int | Literal["auto"], *, model: Any, dtype: torch.dtype, device: torch.device) -> int:
    """Return the most tokens of a physical batch: `wish`, or for `auto` the power of two that fits the device."""
    if wish != "auto":
        return wish
    config = model.config.get_text_config()
    per_token = _activations(config, dtype) + _LOGITS_FACTOR * config.vocab_size
    fitting = int(_SHARE * _beside_weights(model, device)) // per_token
    most = _MOST_TOKENS if device.type == "cuda" else _MOST_ON_PROCESSORS
    return min(most, max(_FEWEST_TOKENS, 1 << max(0, fitting.bit_length() - 1)))


def recompute_activations(
    model: PeftModel, *, wish: str, possible: bool, token_budget: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Turn recomputation on if it is wanted (`on`), or needed and possible (`auto`). Return whether it is on."""
    needed = wish == "on" or (
        wish == "auto"
        and possible
        and needs_gradient_checkpointing(model, token_budget=token_budget, dtype=dtype, device=device)
    )
    if needed:
        enable_gradient_checkpointing(model)
    return needed


def needs_gradient_checkpointing(
    model: PeftModel, *, token_budget: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Say whether a physical batch's activations would take more than half of the memory that the weights leave."""
    activations = token_budget * _activations(model.config.get_text_config(), dtype)
    return activations > _SHARE * _beside_weights(model, device)


def _activations(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes that all layers keep of one token."""
    return int(config.num_hidden_layers * config.hidden_size * _ACTIVATION_FACTOR[dtype])


def _beside_weights(model: Any, device: torch.device) -> int:
    """Return the bytes of the device that the weights leave."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return max(0, total_memory(device) - weights)


def enable_gradient_checkpointing(model: PeftModel) -> None:
    """Turn on reentrant recomputation, the only form that works with per-example gradient hooks.

    The other form runs the forward hooks twice. The reentrant form needs inputs that require a gradient.
    """
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


def total_memory(device: torch.device) -> int:
    """Return the device's memory in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
