"""One frozen base with the adapters of all experts, and the generation of answers."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load as load_tensors
from transformers import GenerationConfig
from transformers.utils import logging

from sealed_experts.data.templates import encode_prompt, encode_words
from sealed_experts.errors import UserError
from sealed_experts.models.attachment import decoding
from sealed_experts.models.classes import CAUSAL
from sealed_experts.models.loading import Base, load_base, resolve_device
from sealed_experts.moe.configuration import BaseReference
from sealed_experts.packages.content.linter import WEIGHTS
from sealed_experts.packages.content.manifest import adapter_of
from sealed_experts.packages.errors import IncompatibleError
from sealed_experts.packages.report import VerifiedPackage

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-3, 1e3  # float32 logits divided by less overflow
LARGEST_SEED = 2**63 - 1


def load_mixture_base(base: BaseReference, *, device: str) -> Base:
    """Load the base of a mixture, frozen.

    Raises:
        UserError: its files do not match its digest, or the device does not exist.
    """
    logging.disable_progress_bar()  # it would be mixed with the answer
    loaded = load_base(base.folder, device=resolve_device(device))
    if loaded.manifest["digest"] != base.digest:
        raise UserError(f"the base in {base.folder} changed while it was read: nothing was loaded; try again")
    return loaded


class Experts:
    """The loaded experts of a mixture."""

    def __init__(self, *, base: Base, packages: Mapping[str, VerifiedPackage]) -> None:
        """Put every adapter on a loaded base.

        Args:
            packages: verified packages, by expert. Only their bytes in memory are used, not their files.

        Raises:
            IncompatibleError: an adapter does not fit the base.
        """
        self._device = base.model.device
        self._tokenizer = base.tokenizer
        self._templates = {name: package.manifest["template"] for name, package in packages.items()}
        self._context: int | None = getattr(base.model.config, "max_position_embeddings", None)
        # PEFT searches for an adapter's name inside the names of tensors: `bank` would also match `bank_loans`, and
        # `layers` would match tensors of every adapter. So give each adapter a name that is part of no other name.
        self.adapters = {name: f"sealed{index:06d}" for index, name in enumerate(packages)}
        groups = _by_peft_type(packages)
        # PEFT holds one type of adapter in a model. Each further type gets a model that shares the base's weights.
        bodies = [base.model, *(base.another() for _ in groups[1:])]
        self._models: dict[str, PeftModel] = {}
        for body, names in zip(bodies, groups, strict=True):
            model = with_adapters(body, {self.adapters[name]: packages[name] for name in names})
            self._models |= dict.fromkeys(names, model)

    def unload(self) -> None:
        """Remove all adapters: the base is then as it was loaded. These experts cannot answer any more."""
        for model in {id(model): model for model in self._models.values()}.values():
            model.unload()

    @torch.inference_mode()
    def generate(
        self, expert: str, question: str, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Return an expert's answer, without the end-of-sequence token and without white space around it.

        Raises:
            UserError: the question is longer than the base's context, or an option is out of range.
        """
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        if temperature != 0 and not SMALLEST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
            raise UserError(
                f"temperature is {temperature}; it must be 0 (greedy), or from {SMALLEST_TEMPERATURE:g} to"
                f" {LARGEST_TEMPERATURE:g}"
            )
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"seed is {seed}; it must be a whole number from 0 to {LARGEST_SEED}")
        prompt = encode_prompt(template=self._templates[expert], instruction=question, tokenizer=self._tokenizer)
        room = self._room(len(prompt), max_new_tokens)
        ids = torch.tensor([prompt], device=self._device)
        model = self.model_of(expert)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            generator, inputs = decoding(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            output = generator.generate(**inputs, generation_config=self._how_to_generate(room, temperature))
        # If the inputs are embeddings, the output of transformers does not repeat the prompt.
        answer = output[0, len(prompt) if "input_ids" in inputs else 0 :]
        return str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def logits(self, expert: str, question: str, *, answer: str = "") -> torch.Tensor:
        """Return an expert's logits at every token of a question and an answer, [tokens, vocabulary].

        Tokens beyond the base's context are cut off.
        """
        how = {"template": self._templates[expert], "tokenizer": self._tokenizer}
        ids = [*encode_prompt(instruction=question, **how), *encode_words(answer, **how)]
        ids = ids[: self._context]
        logits: torch.Tensor = self.model_of(expert)(input_ids=torch.tensor([ids], device=self._device)).logits
        return logits[0, -len(ids) :]  # virtual tokens come before the text's own

    def model_of(self, expert: str) -> PeftModel:
        """Return the model that holds the expert's adapter, with this adapter active."""
        model = self._models[expert]
        # To switch, PEFT visits every adapter of every layer, which is slow with hundreds of experts.
        if model.active_adapter != self.adapters[expert]:
            model.set_adapter(self.adapters[expert])
        return model

    def _room(self, prompt_length: int, max_new_tokens: int) -> int:
        if self._context is None:
            return max_new_tokens
        if prompt_length >= self._context:
            raise UserError(
                f"the question has {prompt_length} tokens with its template, but the base reads at most"
                f" {self._context}: ask a shorter one"
            )
        return min(max_new_tokens, self._context - prompt_length)

    def _how_to_generate(self, max_new_tokens: int, temperature: float) -> GenerationConfig:
        # Use nothing from the base's generation_config.json: its sampling settings would change the answer.
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
            use_cache=True,
            **(sampling or {"do_sample": False}),
        )


def _by_peft_type(packages: Mapping[str, VerifiedPackage]) -> list[list[str]]:
    """Return the experts' names, those whose adapters are of one PEFT type together."""
    groups: dict[str, list[str]] = {}
    for name, package in packages.items():
        groups.setdefault(adapter_of(package.manifest).marks["peft_type"], []).append(name)
    return list(groups.values())


def with_adapters(model: Any, packages: Mapping[str, VerifiedPackage]) -> PeftModel:
    """Attach each package's adapter, under its key in `packages`, with the package's weights."""
    wrapped: PeftModel | None = None
    for adapter, package in packages.items():
        config = adapter_of(package.manifest).peft_config(task_type=CAUSAL.task_type)
        try:
            if wrapped is None:
                wrapped = PeftModel(model, config, adapter_name=adapter)
            else:
                wrapped.add_adapter(adapter, config)
            fill_adapter(wrapped, adapter, load_tensors(package.members[WEIGHTS]))
        except ValueError as error:
            raise IncompatibleError(
                f"the adapter of expert {package.manifest['name']} does not fit the base: {error}"
            ) from error
    assert wrapped is not None, "a mixture has at least one expert"
    return wrapped.eval()


def fill_adapter(model: PeftModel, adapter: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set an adapter's weights. Names and shapes must be exactly those that PEFT expects on this base."""
    own = {key: tensor.shape for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter).items()}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if own != found:
        key = min(key for key, _ in own.items() ^ found.items())
        raise ValueError(f"tensor {key} has the shape {_shape(found.get(key))}, the base needs {_shape(own.get(key))}")
    set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))
