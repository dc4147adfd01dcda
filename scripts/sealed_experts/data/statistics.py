"""Counts and lengths of prepared records, in words and in tokens of the base's tokenizer. No torch."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.records import Record

PERCENTILES = (5, 50, 95)
CHUNK = 1000  # texts tokenized at once: bounds memory

CountTokens = Callable[[Sequence[str]], list[int]]


def token_counter(folder: str | Path) -> CountTokens:
    """Return a function that counts the tokens of texts with the tokenizer in a base's folder."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return lambda texts: [len(slow(text, add_special_tokens=False)["input_ids"]) for text in texts]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(encoding) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def describe(records: Sequence[Record], *, count_tokens: CountTokens) -> dict[str, Any]:
    """Return one side's counts: records, units, and lengths of instruction, input and output together."""
    words, tokens = [], []
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        texts = [[record.instruction, record.input, record.output] for record in chunk]
        words += [sum(len(text.split()) for text in parts) for parts in texts]
        counts = [count_tokens(column) for column in zip(*texts, strict=True)]
        tokens += [sum(parts) for parts in zip(*counts, strict=True)]
    return {
        "records": len(records),
        "units": len({record.unit for record in records}),
        "tokens": lengths(tokens),
        "words": lengths(words),
    }


def lengths(values: Sequence[int]) -> dict[str, int]:
    """Return percentiles (nearest rank), the largest and the sum of lengths; `values` is not empty."""
    ordered = sorted(values)
    ranks = {f"p{percent}": math.ceil(percent / 100 * len(ordered)) - 1 for percent in PERCENTILES}
    return {name: ordered[rank] for name, rank in ranks.items()} | {"max": ordered[-1], "total": sum(ordered)}
