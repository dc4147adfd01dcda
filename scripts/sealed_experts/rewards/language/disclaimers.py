"""Find sentences that say that this is no advice, or that money can be lost."""

import re
import unicodedata

# Matched in lower case with single spaces. Every repetition is bounded, so the time is linear in the text.
_BETWEEN = (
    "(?:a|an|any|as|be|to|or|and|is|it|this|meant|intended|taken|construed|considered|treated|constitute|constituting|"
    "provide|providing|give|giving|offer|offering|formal|individual|personal|personalized|professional|specific|legal|"
    "tax|investment),? "
)
_WORD = "[\\w-]{1,30} "
_NO_ADVICE = (
    rf"(?:not|nor|[a-z]{{2,6}}n't) (?:{_BETWEEN}){{0,8}}financial "
    r"(?:(?:,|or|and|legal|tax|investment),? ){0,4}advice\b",
    rf"consult(?:ing)? (?:with )?(?:an?|your|one's) (?:{_WORD}){{0,4}}?(?:financial|professional|advis[eo]r)",
    rf"consult(?:ing)? (?:with )?(?:{_WORD}){{0,4}}?(?:professionals|advis[eo]rs)\b",
    rf"do(?:ing)? your own (?:{_WORD})?research\b",
    r"past performance\b[^.!?]{0,80}?(?:\b(?:no|not|never|cannot)|n't) (?:\w{1,30} ){0,2}?(?:guarantee|indicative)",
)
_RISK = rf"risks? (?:of (?:{_WORD}){{0,3}}?(?:losing|loss(?:es)?)|losing)\b"
_DISCLAIMER = re.compile(rf"(?<![^\W_])(?:{'|'.join((*_NO_ADVICE, _RISK))})")
_BOILERPLATE = re.compile(rf"(?<![^\W_])(?:{'|'.join(_NO_ADVICE)})")
# Every disclaimer contains one of these. So for most texts a plain search is enough.
_TRACES = ("financial", "consult", "research", "past performance", "risk")
# Curly apostrophes, and marks of emphasis inside a sentence.
_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "*": " ", "_": " ", "`": " ", "\u2010": "-", "\u2011": "-"})


def has_disclaimer(text: str) -> bool:
    """Say whether a text contains a disclaimer. Case and white space do not matter."""
    return _holds(_DISCLAIMER, text)


def is_boilerplate(sentence: str) -> bool:
    """Say whether a sentence refuses to give advice. A sentence that only names a risk can be part of the answer."""
    return _holds(_BOILERPLATE, sentence)


def _holds(pattern: re.Pattern[str], text: str) -> bool:
    plain = " ".join(unicodedata.normalize("NFKC", text).translate(_PLAIN).casefold().split())
    return any(trace in plain for trace in _TRACES) and pattern.search(plain) is not None
