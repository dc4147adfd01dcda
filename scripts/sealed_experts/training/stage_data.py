"""The records of a stage: for training and for validation."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sealed_experts.data.held_out import held_out_records
from sealed_experts.data.records import read_records, records_digest
from sealed_experts.data.statistics import read_statistics
from sealed_experts.files.digests import digest_of
from sealed_experts.models.loading import context_length
from sealed_experts.privacy.plan import check_data_size
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.job_text import read_text
from sealed_experts.training.batches import Example
from sealed_experts.training.dataset import UnitDataset, one_unit_per_record
from sealed_experts.training.fitting import fit_records
from sealed_experts.training.job import STAGE_KEYS, LaterStage
from sealed_experts.training.objectives import STAGES, Stage
from sealed_experts.training.refusals import check_context, check_length


@dataclass(frozen=True, kw_only=True)
class StageData:
    """A stage's records, tokenized.

    Attributes:
        train: the training records.
        validated: the rows of the validation records; each record is a separate unit.
        unit: what a unit of privacy is.
        kinds: the kinds of the records.
        digests: digests of all records, as they are in the files and as tokens.
        lengths: for each side, how many records are used, cut and dropped.
    """

    train: UnitDataset
    validated: list[Example]
    unit: str
    kinds: list[type]
    digests: dict[str, Any]
    lengths: dict[str, dict[str, int]]

    @classmethod
    def read(
        cls, *, train: Path, val: Path, stats: Path, settings: Stage, template: str, tokenizer: PreTrainedTokenizerBase
    ) -> "StageData":
        """Read and tokenize the records of a stage.

        Args:
            train: training records.
            val: validation records.
            stats: stats.json of the training records' dataset.

        Raises:
            UserError: a file cannot be read, the template cannot express a record, a record does not fit the stage's
                lengths, or a held-out record is also a training record.
        """
        statistics = read_statistics(stats)
        records = {
            "train": read_records(train),
            "val": held_out_records(val, train=[train], private=settings.privacy.enabled),
        }
        fitted = {
            side: fit_records(of, stage=settings, template=template, tokenizer=tokenizer, path=path)
            for (side, of), path in zip(records.items(), (train, val), strict=True)
        }
        learned, validated = (UnitDataset.of(of.records) for of in fitted.values())
        return cls(
            train=learned,
            validated=one_unit_per_record(validated.records()[: settings.eval_examples]),
            unit=statistics["unit"],
            kinds=list(dict.fromkeys(type(record) for of in records.values() for record in of)),
            digests={
                "data_digest": statistics["digest"],
                "train_digest": records_digest(records["train"]),
                "val_digest": records_digest(records["val"]),
                "tokens_digest": digest_of([learned.digest(), validated.digest()]),
            },
            lengths={side: of.describe() for side, of in fitted.items()},
        )


def check_later_stage(later: LaterStage, *, base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a later stage of the chain can use its records, before this one spends time and ε on them.

    Its validation records can be another dataset's. They are checked if they are prepared already.

    Args:
        base: base.json.

    Raises:
        UserError: the stage would refuse its records.
    """
    numbers = read_text(later.settings, STAGE_KEYS)
    stage = parse_group(STAGES[numbers["stage"]], numbers["training"])
    check_context(stage, context=context_length(base.parent))
    fit = functools.partial(fit_records, stage=stage, template=numbers["template"], tokenizer=tokenizer)
    units = len(UnitDataset.of(fit(read_records(later.train), path=later.train).records))
    check_length(stage, units=units)
    if stage.privacy.enabled:
        check_data_size(
            stage=stage.feature,
            units=units,
            unit=read_statistics(later.stats)["unit"],
            expected_batch_size=stage.logical_batch,
            delta=stage.privacy.delta,
        )
    if later.val.exists():
        fit(held_out_records(later.val, train=[later.train], private=stage.privacy.enabled), path=later.val)
