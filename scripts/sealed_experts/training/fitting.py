"""Decide for each record alone whether it fits a stage: keep it, cut it, drop it, or refuse the data."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sealed_experts.data.records import Record
from sealed_experts.data.templates import Encoded
from sealed_experts.errors import UserError
from sealed_experts.training.objectives import Stage

_WITHOUT_LIMIT = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The records that a stage uses, each with its rows of tokens, and how many were cut or dropped."""

    records: list[tuple[Record, list[Encoded]]]
    cut: int
    dropped: int

    def describe(self) -> dict[str, int]:
        """Return the numbers of records that are used, cut and dropped."""
        return {"records": len(self.records), "cut": self.cut, "dropped": self.dropped}


def fit_records(
    records: Sequence[Record], *, stage: Stage, template: str, tokenizer: PreTrainedTokenizerBase, path: Path
) -> Fitted:
    """Tokenize records for a stage and apply its `long_rows`.

    Args:
        path: the file of the records, for messages.

    Raises:
        UserError: the template cannot express a record, a record does not fit and may not be cut or dropped, or none
            is left.
    """
    kept: list[tuple[Record, list[Encoded]]] = []
    cut, unfit = 0, []
    for record in records:
        rows = record.encoded(template=template, tokenizer=tokenizer, max_seq_len=_WITHOUT_LIMIT)
        problem = stage.excess(rows)
        if problem and stage.long_rows == "cut":
            cut, problem = cut + 1, ""
        if any(len(row.ids) > stage.max_seq_len for row in rows):
            rows = record.encoded(template=template, tokenizer=tokenizer, max_seq_len=stage.max_seq_len)
        problem = problem or stage.defect(rows)
        if problem:
            unfit.append((record, problem))
        else:
            kept.append((record, rows))
    if unfit and (stage.long_rows != "drop" or not kept):
        raise _refusal(unfit, total=len(records), stage=stage, path=path)
    return Fitted(records=kept, cut=cut, dropped=len(unfit))


def _refusal(unfit: Sequence[tuple[Record, str]], *, total: int, stage: Stage, path: Path) -> UserError:
    (record, problem), name = unfit[0], stage.feature
    remedy = f", or write {name}.long_rows: drop" if stage.long_rows != "drop" else ""
    return UserError(
        f"{path}: {len(unfit)} of {total} records are too long for {name}.max_seq_len {stage.max_seq_len}. The first is"
        f" {textwrap.shorten(record.question, 80)!r}: {problem}. Raise max_seq_len (at most to the base's context),"
        f" shorten the records{remedy}"
    )
