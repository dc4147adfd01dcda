"""Check that a model folder is whole, before anything is trained on it: transformers fills gaps with random numbers."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.files.safetensors_header import PREFIX, header_length, parse_header
from sealed_experts.models.classes import ModelClass
from sealed_experts.models.loading import check_architecture, quiet_transformers

_INDEX = "model.safetensors.index.json"
_NAMED = 3  # tensors in a message
_ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese", "trocr")  # whatever `is_decoder` in their config.json says
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")  # of a layer, in a module's name
_LFS_POINTER = b"version https://git-lfs"  # a small text file in place of a large one
_TOKENIZER_FILES = "the folder needs the tokenizer's files, such as tokenizer.json"


def check_complete(folder: Path, *, name: str, classes: Iterable[ModelClass]) -> dict[str, list[int]]:
    """Check that a folder holds a whole, plain model: architecture, weights, finite values, tokenizer.

    Return `linear_modules` of the model. Every weight is read once: about a second per gigabyte.

    Args:
        name: the base's name in messages.
        classes: classes of models that the stages train. The head of a classifier is trained, so it can be absent.

    Raises:
        UserError: something is missing, damaged, or cannot be trained.
    """
    try:
        config = _config(folder)
        for model_class in classes:
            check_architecture(config.model_type, model_class)
            if model_class.predicts_tokens:
                _check_causal(config)
        _check_files(folder)
        modules: dict[str, list[int]] = {}
        for model_class in classes:
            modules |= _checked_weights(folder, config, model_class)
        _check_finite(folder)
        _check_tokenizer(folder, config)
        return modules
    except UserError as error:
        raise UserError(f"base.name: {name}: {str(error).removeprefix('base.name: ')}") from error


def _config(folder: Path) -> PreTrainedConfig:
    content = read_json(folder / "config.json")
    if not isinstance(content, Mapping) or not isinstance(content.get("model_type"), str):
        raise UserError("config.json names no model_type, so it is not a model folder")
    if content.get("auto_map"):
        raise UserError("it needs its own code (auto_map); use a model that is built into transformers")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            "the folder also holds an adapter (adapter_config.json), which would be loaded with the model: remove it,"
            " or merge it into the model first"
        )
    if quantization := content.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UserError(
            f"its weights are quantised ({method or 'an unknown method'}), and such a base cannot be trained on yet:"
            " use the model that it was made from, or a GGUF file, which is dequantised"
        )
    if content["model_type"] not in CONFIG_MAPPING:
        raise UserError(
            f"this version of transformers does not know the model_type {content['model_type']!r}: use another base"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # values that do not fit the architecture: errors of many types
        raise UserError(f"its config.json cannot be used ({type(error).__name__}: {_first_line(error)})") from error


def _check_causal(config: PreTrainedConfig) -> None:
    """Check that no token sees the tokens behind it: such a model would learn to copy its own answers."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"a {kind} model is an encoder with a decoder: use a decoder-only language model")
    setting = next((name for name in ("is_decoder", "causal") if getattr(config, name, True) is False), None)
    if setting and kind not in _ALWAYS_CAUSAL:
        raise UserError(
            f"in this {kind} model every token sees the tokens behind it ({setting} is false in its config.json): use a"
            " causal language model"
        )


def _check_files(folder: Path) -> None:
    """Compare the index with the files, and each file's length with its header."""
    found = {path.name for path in folder.glob("*.safetensors")}
    if not found:
        raise UserError("there are no .safetensors weights; convert it: pickled weights are not loaded")
    if (folder / _INDEX).exists():
        index = read_json(folder / _INDEX)
        named = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(named, Mapping):
            raise UserError(f"{_INDEX} holds no weight_map: get the file again")
        lost = sorted(set(map(str, named.values())) - found)
        if lost:
            raise UserError(f"{_INDEX} names {lost[0]}, which is missing: get all files of the model")
    for name in sorted(found):
        size = (folder / name).stat().st_size
        try:
            with open(folder / name, "rb") as stream:
                if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise UserError(f"{name} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
                stream.seek(0)
                length = header_length(stream.read(PREFIX), size=size)
                list(parse_header(stream.read(length), data_size=size - PREFIX - length))
        except ValueError as error:
            raise UserError(f"{name} is cut short or damaged ({error}): get the file again") from error


def linear_modules(model: torch.nn.Module) -> dict[str, list[int]]:
    """Return {name: [outputs, inputs]} of a model's linear modules, which adapters can change."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):  # it stores inputs x outputs
            found[name] = [module.weight.shape[1], module.weight.shape[0]]
        elif isinstance(module, torch.nn.Linear):
            found[name] = [*module.weight.shape]
    return found


def _checked_weights(folder: Path, config: PreTrainedConfig, model_class: ModelClass) -> dict[str, list[int]]:
    """Compare the stored tensors with those of the model, and return its linear modules. No weight is read."""
    try:
        with quiet_transformers():
            model, found = model_class.loader().from_pretrained(
                folder,
                local_files_only=True,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # a damaged index or a config that does not fit: errors of many types
        raise UserError(f"its weights cannot be loaded ({type(error).__name__}: {_first_line(error)})") from error
    # The head of a classifier, and what leads to it, is trained: it can be absent.
    body = f"{getattr(model, 'base_model_prefix', '')}."
    missing = sorted(
        name
        for name in found["missing_keys"]
        if model_class.predicts_tokens or (name.startswith(body) and ".pooler." not in name)
    )
    if missing:
        raise UserError(f"the weights lack {_some(missing)}, which the model needs: get all files of the model")
    if found["mismatched_keys"]:
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"])
        raise UserError(f"the weights of {_some(names)} have other shapes than config.json says: get all files again")
    if surplus := _surplus(model, found["unexpected_keys"]):
        raise UserError(
            f"the weights hold {_some(surplus)}, which a model of this config.json does not have: use the config.json"
            " that belongs to them"
        )
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"a {config.model_type} model keeps a state instead of attending to all tokens, and cannot be trained here:"
            " use a transformer"
        )
    return linear_modules(model)


def _surplus(model: torch.nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Return the unexpected tensors that change the model's answers: more layers, or more of a layer that it has.

    Other unexpected tensors are buffers of older versions, and parts for other tasks.
    """
    body = f"{getattr(model, 'base_model_prefix', '')}."
    layers = {name.removeprefix(body) for name, module in model.named_modules() if _stores_weights(module)}
    shapes = {_NUMBER.sub("#", name) for name in layers}
    return sorted(
        name
        for name in unexpected
        if (layer := name.removeprefix(body).rpartition(".")[0]) in layers or _NUMBER.sub("#", layer) in shapes
    )


def _stores_weights(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _check_finite(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    tensor = tensors.get_tensor(name)
                    if tensor.element_size() == 1:
                        tensor = tensor.float()  # `isfinite` does not know 8-bit floats
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        raise UserError(f"{name} in {path.name} holds NaN or infinity: the model is damaged")
        except SafetensorError as error:
            raise UserError(f"{path.name} is damaged ({_first_line(error)}): get the file again") from error


def _check_tokenizer(folder: Path, config: PreTrainedConfig) -> None:
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # without files, transformers fails in many ways
        raise UserError(
            f"its tokenizer cannot be loaded ({type(error).__name__}: {_first_line(error)}): {_TOKENIZER_FILES}"
        ) from error
    # Without files, transformers may also make an empty tokenizer.
    if not any((folder / name).is_file() for name in ("tokenizer.json", *tokenizer.vocab_files_names.values())):
        raise UserError(f"it has no tokenizer: {_TOKENIZER_FILES}")
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end-of-sequence token: choose a base whose tokenizer has one")
    rows = config.get_text_config().vocab_size
    token, largest = max(_used_tokens(folder, tokenizer).items(), key=lambda item: item[1])
    if largest >= rows:
        raise UserError(
            f"its tokenizer has the token {token!r} with the id {largest}, but the model's embedding has only {rows}"
            " rows: resize the model's embedding (resize_token_embeddings), or use the model's own tokenizer"
        )


def _used_tokens(folder: Path, tokenizer: Any) -> dict[str, int]:
    """Return {token: id} of the tokens in the tokenizer's files, and of its control tokens.

    For some classes transformers adds a token of its own when it loads a tokenizer. No text becomes that token.
    """
    path = folder / "tokenizer.json"
    known = dict(Tokenizer.from_file(str(path)).get_vocab()) if path.is_file() else dict(tokenizer.get_vocab())
    named = ("bos", "eos", "pad")
    control = {f"{name}_token": getattr(tokenizer, f"{name}_token_id") for name in named}
    return known | {name: identity for name, identity in control.items() if identity is not None}


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
