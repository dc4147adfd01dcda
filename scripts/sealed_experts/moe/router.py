"""Decide which expert answers a question: by keywords, deterministic, explainable, and without torch.

An expert's score is the number of its *distinct* keywords in the question. The highest score wins. With equal scores,
the highest priority wins, then the first in the routing order. If no keyword matches, an always-active expert answers,
again by priority and order. An expert never answers a question that contains one of its excluded words.

How a keyword, or an excluded word, is found:

- Case, Unicode compatibility forms (full-width letters, ligatures), invisible format characters and the kind of
  apostrophe do not matter. Any white space in the question matches any white space in the keyword.
- `word` (the default): at the keyword's edges, a letter or digit must not touch another one. So "risk" is not found in
  "asterisk", and "C++", "401(k)" and "S&P 500" work as written.
- Simple English plurals of the last word match both ways: keyword "loan" finds "loans", keyword "interest rates"
  finds "interest rate", "equity" finds "equities", "tax" finds "taxes". Words whose plural has another meaning
  ("futures", "goods", "news", "economics") match only as written.
- `substring`: anywhere in the text, for languages without spaces between words.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sealed_experts.errors import UserError

MATCHES = ("word", "substring")

_SIBILANTS = ("s", "x", "z", "ch", "sh")
_VOWELS = "aeiou"
_OWN_PLURALS = frozenset({"futures", "goods", "means", "news", "odds", "series", "species"})
_SHORTEST_PLURAL = 4  # letters: "gas" and "IRS" must not count as plurals


@dataclass(frozen=True)
class Decision:
    """The expert that answers, and its keywords in the question, as configured and in their order."""

    expert: str
    matched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Route:
    """The questions that one expert answers."""

    expert: str
    keywords: tuple[str, ...] = ()
    always_active: bool = False
    match: str = "word"
    exclude: tuple[str, ...] = ()
    priority: int = 0
    _forms: tuple[tuple[str, frozenset[str]], ...] = field(init=False, repr=False, compare=False)
    _excluded: tuple[tuple[str, frozenset[str]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare the word forms to look for.

        Raises:
            UserError: a keyword is empty, or `match` is unknown.
        """
        if self.match not in MATCHES:
            raise UserError(f"expert {self.expert}: match is {self.match!r}; it must be one of {', '.join(MATCHES)}")
        object.__setattr__(self, "_forms", tuple(self._distinct_forms(self.keywords)))
        object.__setattr__(self, "_excluded", tuple(self._distinct_forms(self.exclude)))

    def found_in(self, text: str) -> tuple[str, ...]:
        """Return the distinct keywords in a normalised text."""
        return tuple(keyword for keyword, forms in self._forms if self._holds(text, forms))

    def excludes(self, text: str) -> bool:
        """Say whether a normalised text contains one of the excluded words."""
        return any(self._holds(text, forms) for _, forms in self._excluded)

    def _holds(self, text: str, forms: frozenset[str]) -> bool:
        holds = _holds_word if self.match == "word" else str.__contains__
        return any(holds(text, form) for form in forms)

    def _distinct_forms(self, words: tuple[str, ...]) -> Iterable[tuple[str, frozenset[str]]]:
        seen: set[str] = set()
        for keyword in words:
            text = normalised(keyword)
            if not text:
                raise UserError(f"expert {self.expert}: the keyword {keyword!r} is empty; remove it or write a word")
            if text not in seen:
                forms = _number_forms(text) if self.match == "word" else frozenset({text})
                seen |= forms
                yield keyword, forms


class Router:
    """Chooses the expert for a question."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Take the experts' routes in routing order. The order decides ties.

        Raises:
            UserError: there are no routes, or two have the same name.
        """
        self._routes = tuple(routes)
        names = [route.expert for route in self._routes]
        if not names:
            raise UserError("the mixture has no experts: list at least one")
        if len(set(names)) != len(names):
            raise UserError(
                f"expert {next(n for n in names if names.count(n) > 1)} is listed twice in the routing order"
            )

    def decide(self, question: str) -> Decision:
        """Return the expert that answers `question`.

        Raises:
            UserError: no keyword matches and no expert is always active, or excluded words exclude all candidates.
        """
        text = normalised(question)
        allowed = [route for route in self._routes if not route.excludes(text)]
        found = [(route, route.found_in(text)) for route in allowed]
        called = [(route, matched) for route, matched in found if matched]
        # `max` keeps the first of equals: the routing order decides.
        if called:
            best, matched = max(called, key=lambda pair: (len(pair[1]), pair[0].priority))
            return Decision(best.expert, matched)
        fallbacks = [route for route in allowed if route.always_active]
        if fallbacks:
            return Decision(max(fallbacks, key=lambda route: route.priority).expert, ())
        excluded = [route.expert for route in self._routes if route not in allowed]
        if excluded:
            raise UserError(
                f"no expert answers this question: it contains a word that excludes {', '.join(excluded)}"
                " (`routing.exclude`), and no keyword of another expert; ask without that word, or add a fallback"
            )
        raise UserError(
            "no keyword of any expert matches this question, and no expert is always active: "
            "use one of the experts' keywords, or set `routing: {always_active: true}` for the expert to fall back on"
        )


def normalised(text: str) -> str:
    """Return `text` in the form used for comparison: NFKC_Casefold (Unicode), single spaces, plain apostrophes."""
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf")
    folded = unicodedata.normalize("NFD", visible).casefold()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).casefold())
    return " ".join(folded.replace("\u2019", "'").replace("\u2018", "'").split())


def _holds_word(text: str, form: str) -> bool:
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        if not (_joined(text, start) or _joined(text, end)):
            return True
        start = text.find(form, start + 1)
    return False


def _joined(text: str, position: int) -> bool:
    """Say whether the characters on both sides of `position` belong to one word."""
    return 0 < position < len(text) and _in_word(text[position - 1]) and _in_word(text[position])


def _in_word(char: str) -> bool:
    # Include combining marks: a Devanagari vowel sign does not end a word.
    return char.isalnum() or unicodedata.category(char).startswith("M")


def _number_forms(keyword: str) -> frozenset[str]:
    """Return the forms of a keyword: its last word in singular and plural, by simple rules."""
    letters = len(keyword)
    while letters and keyword[letters - 1].isalpha():
        letters -= 1
    head, word = keyword[:letters], keyword[letters:]
    if len(word) < 2:  # "401k", "W-2", "S&P"
        return frozenset({keyword, f"{keyword}s"})
    if word in _OWN_PLURALS or word.endswith("ics"):
        return frozenset({keyword})
    return frozenset(head + form for form in {word, *_plurals(word), *_singulars(word)})


def _plurals(word: str) -> Iterable[str]:
    if word.endswith("y") and word[-2:-1] not in ("", *_VOWELS):
        yield word[:-1] + "ies"
    elif word.endswith("sis"):
        yield word[:-2] + "es"
    elif word.endswith(_SIBILANTS):
        yield word + "es"
    else:
        yield word + "s"
        if word.endswith("o"):
            yield word + "es"


def _singulars(word: str) -> Iterable[str]:
    if len(word) < _SHORTEST_PLURAL or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return
    if word.endswith("ies"):
        yield word[:-3] + "y"
    elif word.endswith("es") and word[:-2].endswith((*_SIBILANTS, "o")):
        yield word[:-2]
    if word.endswith("yses"):
        yield word[:-2] + "is"
    yield word[:-1]
