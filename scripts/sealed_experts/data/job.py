"""The job of preparing one dataset: the settings that it gets from the configuration."""

import dataclasses

from sealed_experts.data.sources import DATASET, SOURCES, Source
from sealed_experts.errors import UserError
from sealed_experts.settings.job_text import read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetJob:
    """One dataset to prepare."""

    name: str
    seed: int
    dataset: Source


def dataset_from_json(settings: str) -> DatasetJob:
    """Return the job from the text that `configuration.jobs.dataset_settings` writes.

    Raises:
        UserError: the text is not in that form.
    """
    text = read_text(settings, {"name", "recipe", "seed", "dataset"})
    if text["dataset"].get("source") not in SOURCES:
        raise UserError(f"these settings are of an unknown source; known: {', '.join(SOURCES)}")
    return DatasetJob(name=text["name"], seed=text["seed"], dataset=DATASET.parse(text["dataset"]))
