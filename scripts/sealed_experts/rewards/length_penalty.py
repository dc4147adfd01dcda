"""`length_penalty`: 1 for answers of the wanted length, less for shorter and longer ones."""

from collections.abc import Iterator
from typing import ClassVar

from sealed_experts.rewards import Reward
from sealed_experts.settings.fields import setting
from sealed_experts.settings.messages import KeyPath


class LengthPenalty(Reward):
    """1 for min_words to max_words words, falling linearly to 0 at no word and at twice max_words.

    With n words: n / min_words below, (2·max_words - n) / max_words above, never less than 0. White space separates
    words.
    """

    min_words: int = setting("No answer should be shorter.", default=0, ge=0)
    max_words: int = setting("No answer should be longer.", default=100, ge=1)

    about: ClassVar[str] = "1 from `min_words` to `max_words` words, falling to 0 at none and at twice as many"

    def measure(self, response: str) -> float:
        """Return the value for the answer's number of words."""
        words = len(response.split())
        if words < self.min_words:
            return words / self.min_words
        return max(0.0, 1.0 - max(0, words - self.max_words) / self.max_words)

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield a mistake if no length fits."""
        if self.min_words > self.max_words:
            text = f"{self.min_words} is above max_words, which is {self.max_words}; no answer could be right"
            yield ("min_words",), text
