"""What an expert's package could not hold: found here, because sealing comes after all the training."""

import unicodedata
from collections.abc import Iterator

from sealed_experts.settings.messages import Mistake, shown
from sealed_experts.settings.types import ExpertSettings

# The model card, at most 256 KiB, lists them all; so does the manifest. What is left is for everything else in it.
KEYWORD_BYTES = 200_000
_ESCAPED = 4  # bytes that a character such as & or < grows by in the card, at most


def package_mistakes(expert: ExpertSettings) -> Iterator[Mistake]:
    """Yield keywords in which the router would find nothing, and too many of them."""
    here = ("experts", expert.name, "routing", "keywords")
    for place, keyword in enumerate(expert.routing.keywords):
        if all(char.isspace() or unicodedata.category(char) == "Cf" for char in keyword):
            yield Mistake((*here, place), f"{shown(keyword)} holds no visible character; remove it or write a word")
        elif any(unicodedata.category(char) == "Cs" for char in keyword):
            yield Mistake((*here, place), "it holds half a character (a lone surrogate); write it again")
    size = sum(_bytes_in_card(keyword) for keyword in expert.routing.keywords)
    if size > KEYWORD_BYTES:
        yield Mistake(
            here, f"together they take {size} bytes; a package holds at most {KEYWORD_BYTES}: keep those that matter"
        )


def _bytes_in_card(keyword: str) -> int:
    special = sum(not (char.isalnum() or char.isspace()) for char in keyword)
    return len(keyword.encode(errors="replace")) + _ESCAPED * special + len(", ")
