"""The part of the configuration that the rule for the assembly gets."""

import dataclasses

from sealed_experts.moe.settings import GatelinkSettings, HeSettings
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.job_text import read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeMember:
    """One expert of the mixture."""

    name: str
    dataset: str
    routing: RoutingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeJob:
    """A mixture to assemble. The order of its experts decides ties in the router.

    `max_epsilon` limits the mixture's joint ε; None means no limit.
    """

    base: str
    revision: str | None
    experts: tuple[MoeMember, ...]
    he_config: HeSettings
    gatelink_config: GatelinkSettings
    max_epsilon: float | None = None


def moe_from_json(settings: str) -> MoeJob:
    """Read back the text of `configuration.jobs.moe_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = read_text(settings, {"base", "revision", "recipe", "experts", "he_config", "gatelink_config", "max_epsilon"})
    members = tuple(
        MoeMember(
            name=expert["name"], dataset=expert["dataset"], routing=parse_group(RoutingSettings, expert["routing"])
        )
        for expert in text["experts"]
    )
    return MoeJob(
        base=text["base"],
        revision=text["revision"],
        experts=members,
        he_config=parse_group(HeSettings, text["he_config"]),
        gatelink_config=parse_group(GatelinkSettings, text["gatelink_config"]),
        max_epsilon=text["max_epsilon"],
    )
