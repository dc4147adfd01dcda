"""`exact_match`: whether an answer is the record's own, but for case and white space."""

import unicodedata
from typing import ClassVar

from sealed_experts.metrics import Case, Metric


class ExactMatch(Metric):
    """Share of answers that equal the record's own in Unicode's form NFC, but for case and white space."""

    title: ClassVar[str] = "Exact match"
    unit: ClassVar[str] = "share of answers"
    order: ClassVar[int] = 3

    def measure(self, case: Case) -> float:
        """Return 1 for an equal answer, else 0."""
        return float(_plain(case.answer) == _plain(case.gold))


def _plain(text: str) -> str:
    """Return text in form NFC, case-folded, every run of white space as one space, none at the ends."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())
