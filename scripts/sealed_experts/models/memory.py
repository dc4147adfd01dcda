"""Recompute activations instead of keeping them, if they would not fit into memory."""

import os

import torch
from peft import PeftModel

# Bytes per token, layer and hidden unit that a decoder keeps for its backward pass, after Korthikanti et al.,
# "Reducing Activation Recomputation in Large Transformer Models" (2022), equation 2 without the attention term
# (fused attention keeps none), doubled for float32.
_ACTIVATION_FACTOR = {torch.bfloat16: 34, torch.float32: 68}
# Share of the device's memory that activations may take; the rest is weights, gradients and logits.
_SHARE = 0.5


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
    """Say whether a physical batch's activations would take more than half of the memory that the weights leave free.

    The answer depends on the device's total memory, not on what is free now: a resumed run must get the same answer.
    """
    config = model.config
    activations = token_budget * config.num_hidden_layers * config.hidden_size * _ACTIVATION_FACTOR[dtype]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return activations > _SHARE * max(0, total_memory(device) - weights)


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
