"""Rewards of a single measure: `keyword_contains`, `length_penalty`, `format_compliance`."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from sealed_experts.files.canonical import strict_json
from sealed_experts.rewards.reward import Score

_FENCE = "```"
_ITEM = re.compile(r"\s*([0-9]+)\.\s+\S")
_FEWEST_ITEMS = 2


class Measure:
    """A reward whose only axis bears its own name."""

    name: str

    @property
    def weights(self) -> Mapping[str, float]:
        """The one axis is the whole value."""
        return {self.name: 1.0}

    def score(self, prompt: str, response: str) -> Score:
        """Return the measure as value and as axis."""
        value = self.measure(response)
        return Score(value, {self.name: value})

    def measure(self, response: str) -> float:
        """Return how good an answer is, in [0, 1]."""
        raise NotImplementedError


class KeywordContains(Measure):
    """The share of the keywords that an answer holds.

    A keyword is found as written, as a whole word or phrase: case, Unicode compatibility forms, the kind of apostrophe
    and the amount of white space do not matter; a letter or digit that touches its first or last one does.
    """

    name = "keyword_contains"

    def __init__(self, *, keywords: Sequence[str]) -> None:
        """Take the keywords, at least one, none of them blank."""
        self._patterns = [_whole(_comparable(keyword)) for keyword in keywords]

    def measure(self, response: str) -> float:
        """Return found keywords / keywords."""
        text = _comparable(response)
        return sum(pattern.search(text) is not None for pattern in self._patterns) / len(self._patterns)


class LengthPenalty(Measure):
    """1 for min_words to max_words words, falling linearly to 0 at no word and at twice max_words.

    With n words: n / min_words below, (2·max_words - n) / max_words above, never less than 0. Words are what white
    space separates.
    """

    name = "length_penalty"

    def __init__(self, *, min_words: int, max_words: int) -> None:
        """Take the bounds: 0 <= min_words <= max_words, max_words > 0."""
        self._min, self._max = min_words, max_words

    def measure(self, response: str) -> float:
        """Return the value for the answer's number of words."""
        words = len(response.split())
        if words < self._min:
            return words / self._min
        return max(0.0, 1.0 - max(0, words - self._max) / self._max)


class FormatCompliance(Measure):
    """`json`: 1 for one JSON object or array, else 0. `numbered_list`: the share of lines that are items.

    JSON is the whole answer or its only fenced block; text around the fence is allowed. It is read strictly: no
    duplicate keys, no NaN. Items are `1. `, `2. `, … in this order, followed by text; other non-empty lines count
    against the answer, and fewer than two items are no list: 0.
    """

    name = "format_compliance"

    def __init__(self, *, format: str) -> None:
        """Take the format: `json` or `numbered_list`."""
        self._measure = {"json": holds_json, "numbered_list": _item_share}[format]

    def measure(self, response: str) -> float:
        """Return how far the answer keeps the format."""
        return float(self._measure(response))


def holds_json(response: str) -> bool:
    """Say whether an answer is one JSON object or array, or its only fenced block is."""
    return _is_json(response) or _is_json(_only_block(response))


def _is_json(text: str) -> bool:
    try:
        return isinstance(strict_json(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _only_block(response: str) -> str:
    """Return what the only fenced block holds; nothing when there is none, or another one, or no end of it."""
    lines = response.splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith(_FENCE)]
    if len(fences) != 2 or lines[fences[1]].strip() != _FENCE:
        return ""
    return "\n".join(lines[fences[0] + 1 : fences[1]])


def _item_share(response: str) -> float:
    lines = [line for line in response.splitlines() if line.strip()]
    items = 0
    for line in lines:
        found = _ITEM.match(line)
        items += found is not None and found[1] == str(items + 1)
    return items / len(lines) if items >= _FEWEST_ITEMS else 0.0


def _comparable(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'")
    return " ".join(text.casefold().split())


def _whole(keyword: str) -> re.Pattern[str]:
    before = r"(?<![^\W_])" if keyword[0].isalnum() else ""
    after = r"(?![^\W_])" if keyword[-1].isalnum() else ""
    return re.compile(before + re.escape(keyword) + after)
