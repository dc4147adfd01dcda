"""The part of the configuration that the rule for sealing an expert gets."""

import dataclasses
from typing import Any

from sealed_experts.models.adapters import ADAPTER, AdapterKind
from sealed_experts.packages.settings import PackageSettings, RoutingSettings
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.job_text import read_text

# Settings of the expert that its package contains.
PACKAGED = ("name", "version", "description", "template", "stages", "adapter", "routing")
PUBLISHING = "public_evaluation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageJob:
    """One expert to seal.

    Attributes:
        public_evaluation: whether measurements on held-out records may be published.
        dataset: the name of its training data; None if they are private.
    """

    name: str
    version: str
    description: str
    template: str
    stages: tuple[str, ...]
    public_evaluation: bool
    adapter: AdapterKind
    routing: RoutingSettings
    dataset: str | None = None
    package: PackageSettings = dataclasses.field(default_factory=PackageSettings)


def package_from_json(settings: str) -> PackageJob:
    """Read back the text of `configuration.jobs.package_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = read_text(settings, {*PACKAGED, "package", "recipe", PUBLISHING, "dataset"})
    del text["recipe"]
    parsed: dict[str, Any] = {
        "adapter": ADAPTER.parse(text["adapter"]),
        "routing": parse_group(RoutingSettings, text["routing"]),
        "package": parse_group(PackageSettings, text["package"]),
        "stages": tuple(text["stages"]),
    }
    return PackageJob(**text | parsed)
