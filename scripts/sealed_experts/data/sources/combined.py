"""Several prepared datasets together; every record stays on the side of the split it has there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sealed_experts.data.records import read_records
from sealed_experts.data.sources import count_upper_bound as bound_of
from sealed_experts.data.sources.rows import TRAIN, VAL, BadRow, Row
from sealed_experts.errors import UserError
from sealed_experts.settings.sources import CombinedSource, DatasetSettings


def read(settings: CombinedSource, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
    """Yield the prepared records of `parts`, one folder for each dataset in `of`, in that order.

    Raises:
        UserError: the folders are not those of the datasets, or one is not prepared.
    """
    folders = {folder.name: folder for folder in parts}
    if folders.keys() != set(settings.of) or len(parts) != len(settings.of):
        raise UserError(
            f"a combined dataset of {', '.join(settings.of)} got the folders {', '.join(map(str, parts)) or 'none'}"
        )
    for side in (TRAIN, VAL):
        for name in settings.of:
            path = folders[name] / f"{side}.jsonl"
            for line, record in enumerate(read_records(path), 1):
                yield Row(
                    file=str(path),
                    line=line,
                    instruction=record.instruction,
                    input=record.input,
                    output=record.output,
                    unit=record.unit,
                    side=side,
                )


def count_upper_bound(settings: CombinedSource, *, datasets: Mapping[str, DatasetSettings]) -> int | None:
    """Return the sum of the parts' bounds, or None when one of them is not known."""
    bounds = [bound_of(datasets[name], datasets=datasets) if name in datasets else None for name in settings.of]
    known = [bound for bound in bounds if bound is not None]
    return sum(known) if len(known) == len(bounds) else None
