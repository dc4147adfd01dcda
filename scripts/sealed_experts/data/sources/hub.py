"""A dataset on the Hugging Face hub, at a pinned revision, through the `datasets` package."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.sources.rows import BadRow, Row, check_columns, map_row, mapped_columns
from sealed_experts.errors import UserError
from sealed_experts.settings.sources import DatasetSettings, HubSource


def read(settings: HubSource, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
    """Yield the rows of one split; `line` is the row from 1.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured by the library.

    Raises:
        UserError: no network, unknown id, configuration or split, a gated dataset, or a missing column.
    """
    dataset = _load(settings)
    check_columns(settings.path, dataset.column_names, settings)
    wanted = [column for column in mapped_columns(settings) if column in dataset.column_names]
    place = f"{settings.path}@{settings.revision[:12]}[{settings.split}]"
    for number, values in enumerate(dataset.select_columns(wanted), 1):
        yield map_row(values, settings=settings, file=place, line=number)


def count_upper_bound(settings: HubSource, *, datasets: Mapping[str, DatasetSettings]) -> int | None:
    """Return None: the size is known only once the dataset is fetched."""
    return None


def _load(settings: HubSource) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return datasets.load_dataset(
            settings.path, name=settings.name, revision=settings.revision, split=settings.split
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        if "gated" in str(error):
            raise UserError(
                f"path: {settings.path} is a gated dataset: accept its terms on the hub and set HF_TOKEN to a token "
                "that may read it"
            ) from error
        raise UserError(
            f"path: the hub has no dataset {settings.path!r} at revision {settings.revision} (or it is private: then "
            "set HF_TOKEN); give a dataset's id and one of its commits"
        ) from error
    except (ConnectionError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"path: {settings.path} is not in the local cache and the hub cannot be reached (no network, or "
            "HF_HUB_OFFLINE is set): fetch it once with network, or use `source: files`"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"path: the hub refused {settings.path}: {str(error).splitlines()[0]}") from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"path: {settings.path} cannot be read: {str(error).splitlines()[0]}; see `name` and `split`"
        ) from error
