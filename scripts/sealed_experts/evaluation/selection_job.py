"""What the choice of an expert's stage gets of the configuration."""

import dataclasses

from sealed_experts.settings.job_text import read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionJob:
    """Which of an expert's stages is shipped. `metric` is None where nothing is measured: the last stage is taken."""

    expert: str
    stages: tuple[str, ...]
    select: str
    metric: str | None


def selection_from_json(settings: str) -> SelectionJob:
    """Read back the text of `configuration.jobs.selection_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = read_text(settings, {"expert", "stages", "select", "metric"})
    return SelectionJob(**text | {"stages": tuple(text["stages"])})
