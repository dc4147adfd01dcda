"""A reward that a tiny model can learn, and a peer's trainer too."""

from sealed_experts.rewards import Score


class Vowels:
    """The share of vowels in an answer."""

    name = "vowels"
    weights = {"vowels": 1.0}  # noqa: RUF012

    def score(self, prompt: str, response: str) -> Score:
        """Return the share; the prompt does not matter."""
        share = sum(letter in "aeiou" for letter in response) / max(1, len(response))
        return Score(share, {"vowels": share})
