"""Measure how much of an answer says nothing new; `repetition_penalty` lowers a reward by it.

Useless answers can get a high score from simple rules: the same sentence again and again, repeated bullets, lists of
terms without grammar, nothing but a disclaimer. Each of these has its own measure in [0, 1], and the largest counts.
The measures are made for English prose. JSON does not count as a list of terms, but prose in another language would.
"""

import re
from collections.abc import Sequence

from sealed_experts.rewards.language.disclaimers import is_boilerplate
from sealed_experts.rewards.language.json_text import holds_json

NGRAM = 4
_LONGEST_BARE_RUN = 6  # most words in a row that ordinary prose has without a function word
_FEWEST_ITEMS = 5
_WORDS_AN_ITEM = 2.5
_FREE_DISCLAIMER = 1 / 3
_GRAMMAR = """
    a about above across after again against all almost also although always am among an and another any are around as
    at away back be because been before being below between both but by can cannot could did do does doing down during
    each either else enough even ever every few for from further had has have having he her here hers him his how
    however if in instead into is it its itself just least less like likely may maybe me might more most much must my
    near neither never next no nor not nothing now of off often on once one only onto or other others our out over own
    per perhaps rather same several shall she should since so some sometimes still such than that the their them then
    there these they this those though through thus till to together too toward towards typically under unless until up
    upon us usually very was we well were what when where whether which while who whom whose why will with within
    without would yet you your yours can't doesn't don't isn't it's won't you're
"""
_FUNCTION_WORDS = frozenset(_GRAMMAR.split())
_ENUMERATION = re.compile(r"^[^\S\n]*(?:[-*+•]|[0-9]{1,3}[.)])[^\S\n]+", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")
_WORDS = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
# Words, figures, and the marks that separate the items of a list.
_PIECES = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d[\w.,%]*|[,;.!?\n|/]")
_SEPARATORS = ",;.!?\n|/"


def repetition(response: str) -> float:
    """Return the largest of the four measures; 0 for an answer that never repeats itself."""
    text = _ENUMERATION.sub("", response).replace("\u2019", "'").casefold()
    words = _WORDS.findall(text)
    if not words:
        return 0.0
    sentences = [found for part in _SENTENCE_END.split(text) if (found := tuple(_WORDS.findall(part)))]
    return max(
        repeated_ngrams(words),
        repeated_sentences(sentences),
        0.0 if holds_json(response) else listed_terms(text),
        disclaimer_excess(text),
    )


def repeated_ngrams(words: Sequence[str], *, n: int = NGRAM) -> float:
    """Return 1 - |distinct n-grams| / |n-grams|, 0 for fewer than n words.

    seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training" (2019), arXiv:1908.04319, over
    words.
    """
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def repeated_sentences(sentences: Sequence[tuple[str, ...]]) -> float:
    """Return the share of words in repeated sentences, lines or bullets of two words or more."""
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    for sentence in sentences:
        if len(sentence) > 1 and sentence in seen:
            repeated += len(sentence)
        seen.add(sentence)
    return repeated / (sum(map(len, sentences)) or 1)


def listed_terms(text: str) -> float:
    """Return the share of words in lists without grammar.

    A run of words without any function word ("the", "of", "is", …) is a list if it has five items or more, of at most
    2.5 words each. Items end at commas, sentence ends and line breaks. In a run without separators, the words after
    the sixth count. A figure ends a run.
    """
    listed, total = 0, 0
    run: list[int] = [0]  # number of words in each item of the current run
    for piece in [*_PIECES.findall(text), ""]:
        if piece and piece in _SEPARATORS:
            if run[-1]:
                run.append(0)
        elif not piece or piece[0].isdigit() or piece in _FUNCTION_WORDS:
            listed += _listed(run)
            run = [0]
            total += bool(piece)
        else:
            run[-1] += 1
            total += 1
    return listed / total if total else 0.0


def _listed(items: Sequence[int]) -> int:
    words, count = sum(items), sum(size > 0 for size in items)
    if count >= _FEWEST_ITEMS and words <= _WORDS_AN_ITEM * count:
        return words
    return sum(max(0, size - _LONGEST_BARE_RUN) for size in items)


def disclaimer_excess(text: str) -> float:
    """Return how much of an answer is disclaimers: 0 up to a third of its words, 1 if all words are."""
    if not is_boilerplate(text):
        return 0.0
    total, careful = 0, 0
    for sentence in _SENTENCE_END.split(text):
        words = len(_WORDS.findall(sentence))
        total += words
        careful += words * is_boilerplate(sentence)
    share = careful / (total or 1)
    return max(0.0, (share - _FREE_DISCLAIMER) / (1 - _FREE_DISCLAIMER))
