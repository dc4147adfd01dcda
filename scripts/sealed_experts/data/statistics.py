"""Counts and lengths of prepared records, in words and in tokens of the base's tokenizer. Must not import torch."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.records import Record
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json

PERCENTILES = (5, 50, 95)
CHUNK = 1000  # number of records to tokenize at once, to limit memory
_ALL = ""

CountTokens = Callable[[Sequence[str]], list[int]]


def token_counter(folder: str | Path) -> CountTokens:
    """Return a function that counts the tokens of texts with the tokenizer in a base's folder."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return lambda texts: [
            len(slow(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) for text in texts
        ]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # in a record they are ordinary text
    return lambda texts: [len(encoding) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def read_statistics(path: Path) -> dict[str, Any]:
    """Read a prepared dataset's stats.json.

    Raises:
        UserError: the file cannot be read, or does not say what a unit is or which records it describes.
    """
    statistics = read_json(path)
    if not isinstance(statistics, dict) or not all(isinstance(statistics.get(key), str) for key in ("unit", "digest")):
        raise UserError(f"{path} must hold the texts `unit` and `digest`: delete it and run again")
    return statistics


def describe(records: Sequence[Record], *, count_tokens: CountTokens) -> dict[str, Any]:
    """Return counts for one side: records, units, total text length per record, and figures of the kind of records.

    Without records there are only the first two.
    """
    described: dict[str, Any] = {"records": len(records), "units": len({record.unit for record in records})}
    if not records:
        return described
    kind = type(records[0])
    sizes = _sizes(records, parts=kind.parts, count_tokens=count_tokens)
    described |= {measure: lengths(of[_ALL]) for measure, of in sizes.items()}
    described["tokens_histogram"] = histogram(sizes["tokens"][_ALL])
    if kind.parts:
        described["parts"] = {
            part: {measure: lengths(of[part]) for measure, of in sizes.items()} for part in kind.parts
        }
    figures = kind.figures(records).items()
    return described | {name: lengths(figure) if isinstance(figure, list) else figure for name, figure in figures}


def histogram(values: Sequence[int]) -> dict[str, int]:
    """Return {upper bound: how many values are at most that, and above the bound before}; bounds are powers of two."""
    bounds = [1 << max(0, value - 1).bit_length() for value in values]
    return {str(bound): bounds.count(bound) for bound in sorted(set(bounds))}


def _sizes(
    records: Sequence[Record], *, parts: Sequence[str], count_tokens: CountTokens
) -> dict[str, dict[str, list[int]]]:
    """Return {measure: {part: size of each record}}; the part `_ALL` means all texts together."""
    sizes = {measure: {part: [0] * len(records) for part in (_ALL, *parts)} for measure in ("tokens", "words")}
    for start in range(0, len(records), CHUNK):
        chunk = enumerate(records[start : start + CHUNK], start)
        texts = [(place, part, text) for place, record in chunk for part, text in record.texts()]
        counted = {
            "tokens": count_tokens([text for *_, text in texts]),
            "words": [len(text.split()) for *_, text in texts],
        }
        for measure, counts in counted.items():
            for (place, part, _), count in zip(texts, counts, strict=True):
                sizes[measure][_ALL][place] += count
                if part in parts:
                    sizes[measure][part][place] += count
    return sizes


def lengths(values: Sequence[int]) -> dict[str, int]:
    """Return percentiles (nearest rank), the maximum and the sum of lengths; `values` must not be empty."""
    ordered = sorted(values)
    ranks = {f"p{percent}": math.ceil(percent / 100 * len(ordered)) - 1 for percent in PERCENTILES}
    return {name: ordered[rank] for name, rank in ranks.items()} | {"max": ordered[-1], "total": sum(ordered)}
