"""Load a base model and its tokenizer from a verified local folder."""

import contextlib
import copy
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from sealed_experts.errors import UserError
from sealed_experts.models.classes import CAUSAL, ModelClass
from sealed_experts.models.manifest import verify_base

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A frozen language model on its device, with its tokenizer and its manifest (base.json)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    manifest: dict[str, Any]
    dtype: torch.dtype
    folder: Path
    model_class: ModelClass
    options: Mapping[str, Any]

    def another(
        self, *, model_class: ModelClass | None = None, options: Mapping[str, Any] | None = None
    ) -> PreTrainedModel:
        """Return another frozen model of this base, on the same device. Call it before an adapter is attached.

        It shares the weights of this base. A model of another class, or with other options, is loaded from disk.
        """
        model_class, options = model_class or self.model_class, self.options if options is None else options
        if (model_class, options) == (self.model_class, self.options):
            return copy.deepcopy(self.model, {id(weight): weight for weight in self.model.parameters()})
        model = _load_model(self.folder, dtype=self.dtype, model_class=model_class, options=options)
        return _frozen(model, self.model.device)


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means.

    Raises:
        UserError: the name is `cuda`, but there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is `cuda`, but PyTorch sees no CUDA device: use `device: auto` or `device: cpu`")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `auto`, `float32` or `bfloat16` means. auto: bfloat16 if the GPU has it, else float32."""
    if name != "auto":
        return DTYPES[name]
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if bfloat16 else torch.float32


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base folder.

    Raises:
        UserError: it has no end-of-sequence token, so answers could not end.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {folder} has no end-of-sequence token: choose a base whose tokenizer has one"
        )
    if tokenizer.pad_token_id is None:
        # Padding never reaches the loss, so any valid id will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    folder: str | Path,
    *,
    device: torch.device,
    model_class: ModelClass = CAUSAL,
    options: Mapping[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Base:
    """Verify a base folder against its base.json and load it frozen, on `device`.

    The model goes to its device here, before any adapter is attached.

    Args:
        model_class: the class of model to load.
        options: values that replace those in its config.json, such as the number of labels of a classifier.
        check: called after each slow step (verify, read, move to the device); it may raise to give up.

    Raises:
        UserError: a file differs from its digest, is missing, or is not listed; or the base's architecture has no
            model of this class.
    """
    manifest = verify_base(Path(folder))
    dtype = resolve_dtype(manifest["dtype"], device)
    clear_device_memory(device)
    check()
    model = _load_model(folder, dtype=dtype, model_class=model_class, options=options or {})
    check()
    return Base(
        model=_frozen(model, device),
        tokenizer=load_tokenizer(folder),
        manifest=manifest,
        dtype=dtype,
        folder=Path(folder),
        model_class=model_class,
        options=options or {},
    )


def _frozen(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    model.to(device)  # type: ignore[arg-type]  # transformers wraps the method and loses its signature
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def _load_model(
    folder: str | Path, *, dtype: torch.dtype, model_class: ModelClass, options: Mapping[str, Any]
) -> PreTrainedModel:
    torch.manual_seed(0)  # a new head gets the same weights in every run
    check_architecture(AutoConfig.from_pretrained(folder, local_files_only=True).model_type, model_class)

    def load(attention: str) -> PreTrainedModel:
        return model_class.loader().from_pretrained(
            folder,
            local_files_only=True,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            **options,
        )

    try:
        return load("sdpa")
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        return load("eager")  # an architecture without fused attention


def check_architecture(model_type: str, model_class: ModelClass) -> None:
    """Check that an architecture has a model of this class.

    Raises:
        UserError: it has none.
    """
    if model_type not in model_class.architectures():
        raise UserError(f"base.name: the base is a {model_type} model, and there is no {model_class.noun} of that kind")


def context_length(folder: str | Path) -> int | None:
    """Return the longest sequence that a base's configuration states, or None if it states none."""
    config = json.loads((Path(folder) / "config.json").read_text())
    return config.get("max_position_embeddings") or config.get("n_positions")


def clear_device_memory(device: torch.device) -> None:
    """Free the device memory that is no longer used, so that the next step can use it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide progress bars and warnings of transformers in this block."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
