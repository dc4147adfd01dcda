"""Attach a trainable adapter to a frozen base, and read and write its weights by PEFT's names."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel

from sealed_experts.errors import UserError
from sealed_experts.models.adapters import AdapterKind, kind_of
from sealed_experts.models.classes import CAUSAL, ModelClass


def attach_adapter(
    base: PreTrainedModel, adapter: AdapterKind, *, seed: int, model_class: ModelClass = CAUSAL
) -> PeftModel:
    """Return `base` with a new adapter, trainable and in float32. Its weights follow from `seed`.

    Raises:
        UserError: the adapter cannot be attached to this base.
    """
    torch.manual_seed(seed)
    model = adapter.attach(base, task_type=model_class.task_type)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    # Opacus' hooks and recomputation need training mode. Switch off dropout: no key would control its randomness.
    model.train()
    _switch_off_dropout(model)
    return model


def _switch_off_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Attention layers keep the probability as a number and pass it to a function.
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's weights on the CPU, by PEFT's names, sorted."""
    state = get_peft_model_state_dict(model)
    return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in sorted(state)}


def load_adapter_state(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Replace the adapter's weights. The names and shapes must be exactly those of the model.

    Raises:
        UserError: a tensor is missing, does not belong to the adapter, or has another shape.
    """
    own = get_peft_model_state_dict(model)
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    for problem, names in (
        ("lacks", missing),
        ("has the foreign tensor", foreign),
        ("has another shape for", reshaped),
    ):
        if names:
            raise UserError(f"these adapter weights do not fit this model: the file {problem} {names[0]}")
    set_peft_model_state_dict(model, dict(state))


@contextlib.contextmanager
def as_base(model: PeftModel) -> Iterator[torch.nn.Module]:
    """Yield the base without the adapter while the block runs. Trainable parameters stay trainable."""
    trainable = trainable_parameters(model)
    try:
        with model.disable_adapter():
            yield model.get_base_model()
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)


def decoding(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the model to generate tokens with, using a cache, and the inputs of its first pass.

    The kind of the active adapter decides (`AdapterKind.decoding`). Without an adapter, model and inputs stay the same.
    """
    if not isinstance(model, PeftModel):
        return model, inputs
    kind = kind_of(vars(model.active_peft_config))
    assert kind is not None, "adapters are made by their kinds"
    return kind.decoding(model, inputs)


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the trainable parameters in the model's fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
