"""`exact_match`: whether an answer equals the record's own, except for case and white space."""

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
    """Return text in form NFC, case-folded, with single spaces as its only white space, and none at the ends."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())
