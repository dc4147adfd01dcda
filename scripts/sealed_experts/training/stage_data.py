"""The records of a stage: for training and for validation."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sealed_experts.data.held_out import held_out_records
from sealed_experts.data.records import read_records, records_digest
from sealed_experts.data.statistics import read_statistics
from sealed_experts.files.digests import digest_of
from sealed_experts.training.batches import Example
from sealed_experts.training.dataset import UnitDataset, one_unit_per_record
from sealed_experts.training.job import StageJob


@dataclass(frozen=True, kw_only=True)
class StageData:
    """A stage's records, tokenized.

    Attributes:
        train: the training records.
        validated: the rows of the validation records; each record is a separate unit.
        unit: what a unit of privacy is.
        kinds: the kinds of the records.
        digests: digests of all records, as they are in the files and as tokens.
    """

    train: UnitDataset
    validated: list[Example]
    unit: str
    kinds: list[type]
    digests: dict[str, Any]

    @classmethod
    def read(cls, job: StageJob, *, tokenizer: PreTrainedTokenizerBase) -> "StageData":
        """Read and tokenize the records of a job.

        Raises:
            UserError: a file cannot be read, the template cannot express a record, or a held-out record is also a
                training record.
        """
        train = read_records(job.train)
        held_out = held_out_records(job.val, train=[job.train], private=job.settings.privacy.enabled)
        learned, validated = (
            UnitDataset.from_records(
                records, template=job.template, tokenizer=tokenizer, max_seq_len=job.settings.max_seq_len
            )
            for records in (train, held_out)
        )
        stats = read_statistics(job.stats)
        return cls(
            train=learned,
            validated=one_unit_per_record(validated.records()[: job.settings.eval_examples]),
            unit=stats["unit"],
            kinds=list(dict.fromkeys(type(record) for record in (*train, *held_out))),
            digests={
                "data_digest": stats["digest"],
                "train_digest": records_digest(train),
                "val_digest": records_digest(held_out),
                "tokens_digest": digest_of([learned.digest(), validated.digest()]),
            },
        )
