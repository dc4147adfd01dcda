"""Turn a GGUF file into an ordinary Hugging Face folder: dequantised weights, tokenizer, chat template."""

import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.models.loading import quiet_transformers

MAGIC = b"GGUF"


def convert_gguf(source: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the model in a GGUF file to `folder`, as `save_pretrained` writes it. The same file gives the same bytes.

    Args:
        source: the GGUF file.
        folder: an existing, empty folder.
        dtype: number format of the dequantised weights.

    Raises:
        UserError: the file is not GGUF, is cut short, or holds an architecture or a quantisation that cannot be read.
    """
    _check_complete(source)
    with quiet_transformers():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        except Exception as error:  # its readers have errors of many types
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"base.name: transformers cannot read the model in {source} ({_line(error)}): use a GGUF file of"
                " another architecture or quantisation, such as F16 or Q8_0, or the model's Hugging Face folder"
            ) from error
        # The weights are not quantised any more. transformers would refuse to save a model that says so.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_complete(source: Path) -> None:
    """Check that the file is as long as its header says."""
    import gguf

    with open(source, "rb") as stream:
        start = stream.read(8)
    if start[:4] != MAGIC:
        raise UserError(f"base.name: {source} is not a GGUF file: its first bytes are {start[:4].hex(' ') or 'none'}")
    try:
        reader = gguf.GGUFReader(source)
        end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise UserError(f"base.name: {source} is cut short or damaged ({_line(error)}): get the file again") from error
    if end > source.stat().st_size:
        raise UserError(
            f"base.name: {source} is cut short: it has {source.stat().st_size} bytes, and its last tensor ends at"
            f" {end}: get the file again"
        )


def _line(error: Exception) -> str:
    """Return an error's type and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
