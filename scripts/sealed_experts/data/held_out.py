"""The held-out records of a run, none of which it trains on."""

from pathlib import Path

from sealed_experts.data.records import Record, read_records, sayings
from sealed_experts.errors import UserError


def held_out_records(path: Path, *, train: Path, private: bool) -> list[Record]:
    """Return the records of a prepared validation or test set without those that are trained on.

    Both sides of one dataset were told apart when it was prepared. Records of another dataset may be among the training
    records. Without privacy they are left out, and that is printed. Under privacy it would tell who is trained on:
    numbers that are measured on public records could then depend on a single private one.

    Args:
        path: the set's file.
        train: the training records' file.
        private: whether they are trained on under privacy.

    Raises:
        UserError: a file cannot be read, no record is left, or one would have to be left out under privacy.
    """
    records = read_records(path)
    if path.parent == train.parent:
        return records
    learned = {said for record in read_records(train) for said in sayings(record)}
    kept = [record for record in records if learned.isdisjoint(sayings(record))]
    common = len(records) - len(kept)
    if common and private:
        first = next(record for record in records if not learned.isdisjoint(sayings(record)))
        raise UserError(
            f"{path}: {common} of {len(records)} records, or their questions, are in {train} too; the first has the id"
            f" {first.id}. Under privacy, leaving them out would tell who is trained on: remove them from one of the"
            " two datasets"
        )
    if common and not kept:
        raise UserError(f"{path}: every record is also in {train}: give others to validate on")
    if common:
        print(f"{common} of {len(records)} records of {path} are trained on: left out", flush=True)
    return kept
