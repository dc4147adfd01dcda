"""What the choice of an expert's stage gets of the configuration, as canonical JSON, and how it is read back."""

import dataclasses

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.settings.parsing import parse_object
from sealed_experts.settings.types import Settings

_KEYS = {"expert", "stages", "select", "metric"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionRun:
    """Which of an expert's stages is shipped. `metric` is None where nothing is measured: the last stage is taken."""

    expert: str
    stages: tuple[str, ...]
    select: str
    metric: str | None


def selection_settings(settings: Settings, expert_name: str) -> str:
    """Return what decides which stage of an expert is shipped, as canonical JSON."""
    expert = settings.by_name[expert_name]
    run = SelectionRun(
        expert=expert.name,
        stages=expert.stages,
        select=expert.select,
        metric=expert.select_metric if expert.select == "best" else None,
    )
    return canonical_json(dataclasses.asdict(run) | {"stages": list(run.stages)})


def selection_from_json(settings: str) -> SelectionRun:
    """Read back the text of `selection_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = parse_object(settings)
    if text.keys() != _KEYS:
        raise UserError(f"these settings should hold {', '.join(sorted(_KEYS))}; they hold {', '.join(sorted(text))}")
    return SelectionRun(**text | {"stages": tuple(text["stages"])})
