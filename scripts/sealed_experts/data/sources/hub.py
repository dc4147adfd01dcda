"""A dataset on the Hugging Face hub, at a pinned revision, through the `datasets` package."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from sealed_experts.data.rows import BadRow, Mapped, Row, check_columns, map_row, mapped_columns
from sealed_experts.data.sources import SplitSource
from sealed_experts.errors import UserError
from sealed_experts.settings.fields import setting
from sealed_experts.settings.texts import Commit


class Hub(Mapped, SplitSource):
    """A dataset on the Hugging Face hub."""

    source: Literal["hub"] = setting("The hub.", default="hub")
    path: str = setting("The dataset's id.", min_length=1)
    revision: Commit = setting("The dataset's commit (40 hexadecimal digits).")
    name: str | None = setting("The dataset's configuration, if it has several.", default=None, min_length=1)
    split: str = setting("The dataset's split to read.", default="train", min_length=1)

    recipe: ClassVar[int] = 4

    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield the rows of one split; `line` is the number of the row, from 1.

        The library uses HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.

        Raises:
            UserError: no network; an unknown id, configuration or split; a gated dataset; or a missing column.
        """
        dataset = _load(self)
        check_columns(self.path, dataset.column_names, self)
        wanted = [column for column in mapped_columns(self) if column in dataset.column_names]
        place = f"{self.path}@{self.revision[:12]}[{self.split}]"
        for number, values in enumerate(dataset.select_columns(wanted), 1):
            yield map_row(values, settings=self, file=place, line=number)

    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield the dataset on the hub."""
        yield f"hub {self.path} {self.name}", self.path


def _load(settings: Hub) -> Any:
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
