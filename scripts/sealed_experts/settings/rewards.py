"""Settings of the rewards that score sampled answers."""

import dataclasses
from collections.abc import Mapping

from sealed_experts.settings.fields import Group, setting

REWARDS = ("finance", "keyword_contains", "length_penalty", "format_compliance", "composite")
# The settings that each knows, besides those of every reward; a function of the user's knows none.
REWARD_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "keyword_contains": ("keywords",),
    "length_penalty": ("min_words", "max_words"),
    "format_compliance": ("format",),
    "composite": ("parts",),
}
# One of the names above, or a function of the user's: `module:function`. Which it is, is checked apart.
REWARD_NAME = r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardParameters(Group):
    """What the single rewards can be told; each knows only its own."""

    keywords: tuple[str, ...] = setting(
        "`keyword_contains`: words and phrases that an answer should hold, at least one.",
        default=(),
        uniqueItems=True,
        items={"pattern": r"\S"},
    )
    min_words: int = setting("`length_penalty`: no answer should be shorter.", default=0, minimum=0)
    max_words: int = setting("`length_penalty`: no answer should be longer.", default=100, minimum=1)
    format: str = setting(
        "`format_compliance`: what an answer should be.", default="json", enum=["json", "numbered_list"]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardPart(RewardParameters):
    """One reward within a composite."""

    reward: str = setting("The reward's name; any but `composite`.", pattern=REWARD_NAME)
    weight: float = setting("Its share; shares are divided by their sum.", default=1.0, exclusiveMinimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardOptions(RewardParameters):
    """The settings of a stage's reward."""

    parts: tuple[RewardPart, ...] = setting("`composite`: the rewards that it holds, at least one.", default=())
    repetition_penalty: float = setting(
        "Takes up to this share of the reward away from answers that repeat themselves or list terms without grammar"
        " (measured on English).",
        default=0.0,
        minimum=0,
        maximum=1,
    )
