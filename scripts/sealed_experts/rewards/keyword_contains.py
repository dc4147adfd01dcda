"""`keyword_contains`: the share of given keywords that an answer contains."""

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, ClassVar

from sealed_experts.rewards import Reward
from sealed_experts.settings.fields import Distinct, setting, text
from sealed_experts.settings.messages import KeyPath

Keyword = Annotated[str, text(r"\S", "text that is not blank")]


class KeywordContains(Reward):
    """The share of the keywords that an answer holds.

    A keyword is found as a whole word or phrase: no letter or digit may touch its ends. Case, Unicode compatibility
    forms, the kind of apostrophe and the amount of white space do not matter.
    """

    keywords: Distinct[Keyword] = setting("Words and phrases that an answer should hold, at least one.", default=())

    about: ClassVar[str] = "share of `keywords` that the answer holds"

    def measure(self, response: str) -> float:
        """Return found keywords / keywords."""
        text = _comparable(response)
        return sum(pattern.search(text) is not None for pattern in self._patterns) / len(self._patterns)

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield a mistake if there is no keyword."""
        if not self.keywords:
            yield ("keywords",), "none are given; list at least one word or phrase that an answer should hold"

    @functools.cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [_whole(_comparable(keyword)) for keyword in self.keywords]


def _comparable(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'")
    return " ".join(text.casefold().split())


def _whole(keyword: str) -> re.Pattern[str]:
    before = r"(?<![^\W_])" if keyword[0].isalnum() else ""
    after = r"(?![^\W_])" if keyword[-1].isalnum() else ""
    return re.compile(before + re.escape(keyword) + after)
