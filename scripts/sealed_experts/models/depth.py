"""A model with fewer layers, for checks of what shapes decide: layers of one kind run the same kernels."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def shallow(model: torch.nn.Module) -> Iterator[None]:
    """Leave the first two layers and the first of every other kind in a model while the block runs.

    Two layers, because no gradient goes below the first one. A model without a list of layers stays as it is.
    """
    found = _layers(model)
    if found is None:
        yield
        return
    owner, name, layers = found
    kinds: list[Any] = []
    kept = []
    for index, layer in enumerate(layers):
        kind = _kind(model, index, layer)
        if index < 2 or kind not in kinds:
            kept.append(layer)
        kinds.append(kind)
    setattr(owner, name, torch.nn.ModuleList(kept))
    try:
        yield
    finally:
        setattr(owner, name, layers)


def _layers(model: torch.nn.Module) -> tuple[torch.nn.Module, str, torch.nn.ModuleList] | None:
    """Return the list that holds most of the model's weights, with its owner and its name there."""
    lists = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) > 2
    ]
    return max(lists, key=lambda found: sum(weight.numel() for weight in found[2].parameters()), default=None)


def _kind(model: torch.nn.Module, index: int, layer: torch.nn.Module) -> Any:
    types = getattr(getattr(model, "config", None), "layer_types", None) or []
    weights = [(name, weight.shape, weight.dtype, weight.requires_grad) for name, weight in layer.named_parameters()]
    return type(layer), types[index : index + 1], weights


@contextlib.contextmanager
def narrow(model: Any, *, tokens: int) -> Iterator[int]:
    """Leave the first tokens of a plain output head in a model while the block runs; yield how many there are.

    The head is the widest layer of a small model. An adapted head stays as it is.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad:
        yield model.get_input_embeddings().weight.shape[0]
        return
    weight, bias = head.weight, head.bias
    head.weight = torch.nn.Parameter(weight[:tokens].contiguous(), requires_grad=False)
    if bias is not None:
        head.bias = torch.nn.Parameter(bias[:tokens].contiguous(), requires_grad=False)
    try:
        yield head.weight.shape[0]
    finally:
        head.weight, head.bias = weight, bias
