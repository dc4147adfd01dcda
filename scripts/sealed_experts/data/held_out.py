"""The held-out records of a training: none of them is trained on."""

from collections.abc import Sequence
from pathlib import Path

from sealed_experts.data.records import Record, overlap_keys, read_records
from sealed_experts.errors import UserError


def held_out_records(path: Path, *, train: Sequence[Path], private: bool) -> list[Record]:
    """Return the records of a prepared validation or test set, without the records that are trained on.

    Within one dataset, preparation has already separated them. Records of another dataset may also be training records.
    Without privacy such records are left out, and their number is printed. Under privacy this is an error: leaving them
    out would reveal who is in the training data, because public numbers could depend on a single private record.

    Args:
        path: file of the validation or test set.
        train: files of the training records.
        private: whether the training is under privacy.

    Raises:
        UserError: a file cannot be read, no record is left, or a record would have to be left out under privacy.
    """
    records = read_records(path)
    others = [file for file in train if file.parent != path.parent]
    learned = {key for file in others for record in read_records(file) for key in overlap_keys(record)}
    kept = [record for record in records if learned.isdisjoint(overlap_keys(record))]
    common = len(records) - len(kept)
    named = " and ".join(map(str, others))
    if common and private:
        first = next(record for record in records if not learned.isdisjoint(overlap_keys(record)))
        raise UserError(
            f"{path}: {common} of {len(records)} records, or their questions, are in {named} too; the first has the id"
            f" {first.id}. Under privacy, leaving them out would reveal who is in the training data: remove them from"
            " one of the datasets"
        )
    if common and not kept:
        raise UserError(f"{path}: every record is also in {named}: give other records to validate on")
    if common:
        print(f"{common} of {len(records)} records of {path} are left out: they are training records", flush=True)
    return kept
