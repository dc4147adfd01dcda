"""What one stage of one expert is to train."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealed_experts.settings.types import AdapterSettings, StageSettings


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """What one stage of one expert trains, and from which files."""

    stage: str
    expert: str
    seed: int
    device: str
    template: str
    adapter: AdapterSettings
    settings: StageSettings
    computed: dict[str, Any]  # the settings that decide the numbers, as plain data
    base: Path  # base.json
    train: Path
    val: Path
    stats: Path
    start: Path | None  # the adapter file of the stage before
    checkpoints: Path
    output: Path
    code: Mapping[str, str] = field(default_factory=dict)  # digests of the user's own code that it runs, by file
