"""`finance`: is an answer about money well formed, in financial terms, relevant, and careful?"""

import math
import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from sealed_experts.rewards import Reward, Score
from sealed_experts.rewards.language.disclaimers import has_disclaimer
from sealed_experts.rewards.language.glossary import terms_in

WEIGHTS: Mapping[str, float] = MappingProxyType({"format": 0.4, "terminology": 0.3, "relevance": 0.2, "safety": 0.1})

_STRUCTURE = ("\n", "- ", "1.")
_ENDINGS = (".", "!", "?", ")", '"', "'")
_FALSE_PRECISION = re.compile(r"\d{1,2}\.\d{3,}%")
_TERMS_WANTED = ((5, 1.0), (3, 0.7), (1, 0.4))
_LETTERS = re.compile(r"[^\W\d_]{4,}")
_RELEVANCE_SCALE = 1.5
_UNKNOWN_RELEVANCE = 0.5
_WITHOUT_DISCLAIMER = 0.2
# Words of a prompt that asks for advice: six words and their forms. Only whole words count ("livestock" and
# "investigate" are others), and a best-seller is a book.
_ASKS_FOR_ADVICE = re.compile(
    r"(?<![^\W_])(?:"
    r"(?:re)?invest(?:s|ed|ing|ments?|ors?|able)?|buy(?:s|ing|ers?|backs?|outs?)?|sell(?:s|offs?)?"
    r"|(?<!best[- ])sell(?:ing|ers?)|portfolios?|stocks?|stock(?:holder|broker)s?"
    r"|recommend(?:s|ed|ing|ations?|able)?"
    r")(?![^\W_])"
)


class Finance(Reward):
    """Rules that a reader can check by hand. White space around an answer is ignored."""

    about: ClassVar[str] = "form, terminology, relevance and safety of an answer about money"

    @property
    def weights(self) -> Mapping[str, float]:
        """The axes' shares."""
        return WEIGHTS

    def score(self, prompt: str, response: str) -> Score:
        """Return the score with its four axes."""
        response = response.strip()
        axes = {
            "format": format_axis(response),
            "terminology": terminology_axis(response),
            "relevance": relevance_axis(prompt, response),
            "safety": safety_axis(prompt, response),
        }
        return Score(math.fsum(WEIGHTS[axis] * value for axis, value in axes.items()), axes)


def format_axis(response: str) -> float:
    """Return 0.3 for 20 to 500 words (0.1 for 10 to 19), 0.3 for structure, 0.2 each for percentages and ending.

    White space separates words.
    """
    words = len(response.split())
    tenths = 3 if 20 <= words <= 500 else 1 if 10 <= words < 20 else 0
    tenths += 3 * any(mark in response for mark in _STRUCTURE)
    tenths += 2 * (_FALSE_PRECISION.search(response) is None)
    tenths += 2 * response.endswith(_ENDINGS)
    return tenths / 10


def terminology_axis(response: str) -> float:
    """Return 1.0 for five or more distinct glossary terms, 0.7 for three, 0.4 for one, 0 for none."""
    found = len(terms_in(response))
    return next((value for wanted, value in _TERMS_WANTED if found >= wanted), 0.0)


def relevance_axis(prompt: str, response: str) -> float:
    """Return 1.5 times the share of the prompt's distinct longer words that occur in the response, at most 1.

    Longer words have four letters or more. Case does not matter; another form is another word. 0.5 if the prompt has
    no longer word.
    """
    asked = _longer_words(prompt)
    if not asked:
        return _UNKNOWN_RELEVANCE
    return min(1.0, _RELEVANCE_SCALE * len(asked & _longer_words(response)) / len(asked))


def safety_axis(prompt: str, response: str) -> float:
    """Return 0.2 for an answer without a disclaimer to a prompt that asks for advice, else 1.0."""
    if _ASKS_FOR_ADVICE.search(_folded(prompt)) and not has_disclaimer(response):
        return _WITHOUT_DISCLAIMER
    return 1.0


def _longer_words(text: str) -> set[str]:
    return set(_LETTERS.findall(_folded(text)))


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
