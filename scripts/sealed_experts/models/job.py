"""The part of the configuration that the rules for making or fetching the base get."""

import dataclasses
from typing import Any

from sealed_experts.models.settings import BaseSettings
from sealed_experts.settings.checking import parse_group, parse_object
from sealed_experts.settings.job_text import read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseJob:
    """The base to make or to fetch."""

    key: str
    seed: int
    device: str
    base: BaseSettings


def base_from_json(settings: str, operation: str | None = None) -> BaseJob:
    """Read back the texts of `configuration.jobs`: `base_settings`, and `base_operation` if the base is made here.

    Raises:
        UserError: a text is not what these functions write.
    """
    keys = {"key", "base", *({"recipe", "seed"} & parse_object(settings).keys())}
    text = {"seed": 0} | read_text(settings, keys)
    how: dict[str, Any] = (
        {"device": "auto", "demo": {}} if operation is None else read_text(operation, {"device", "demo"})
    )
    base = dict(text["base"])
    base["demo"] = base.get("demo", {}) | how["demo"]
    return BaseJob(key=text["key"], seed=text["seed"], device=how["device"], base=parse_group(BaseSettings, base))
