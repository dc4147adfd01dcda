"""The general text that the demo base is pretrained on: plain English, definitions of the glossary, plain dialogues.

It holds the glossary in many plain wordings, as public knowledge. It holds no fixed phrase of the experts' house style,
no advice of their answers, and no values of their calculations. So the base writes readable answers, and the experts
have something to learn.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.data.demo_calculations import instances, parted
from sealed_experts.data.demo_glossary import (
    DEMO_FOLDER,
    DOMAINS,
    Item,
    Term,
    capitalized,
    families_of,
    in_fixed_order,
    pick,
    read_terms,
    read_yaml,
)
from sealed_experts.data.demo_questions import categories, comparisons
from sealed_experts.data.templates import prompt_text

TEMPLATE = "alpaca"
PLAIN_INSTANCES = 15  # of each kind of calculation
STORY_COPIES = 30
PROSE_COPIES = 20
PARAGRAPH = 3  # sentences in one paragraph
EXCHANGE_COPIES = 6
RECITALS = 200
RECITED = 4  # largest number of phrases in one recital


@dataclasses.dataclass(frozen=True)
class Document:
    """A piece of general text: the base only reads `prompt`, and learns to write `text`."""

    prompt: str
    text: str


def general_text(*, folder: Path = DEMO_FOLDER) -> list[Document]:
    """Return the documents of the general text, always the same ones in the same shuffled order."""
    general = read_yaml(folder / "general.yaml")
    plain = read_yaml(folder / "style.yaml")["plain"]
    documents = [*_stories(general), *_prose(general), *_exchanges(general)]
    phrases = [phrase for options in general["words"].values() for phrase in options]
    for domain in DOMAINS:
        terms = read_terms(domain, folder=folder)
        phrases += [term.term for term in terms]
        documents += [*_on_terms(terms, plain), *_on_calculations(domain, plain, folder)]
    return _mixed([*documents, *_recitals(general, phrases)])


def exchange(ask: str, answer: str, *, input: str = "") -> Document:
    """Return one question and its answer."""
    return Document(prompt_text(template=TEMPLATE, instruction=ask, input=input), answer)


def _on_terms(terms: list[Term], plain: dict[str, Any]) -> Iterator[Document]:
    choice = categories(terms)
    for term in terms:
        slots = term.slots() | {"categories": choice}
        for template in plain["definition"]:
            ask = template.format(**slots)
            yield exchange(ask, _plain_answer(plain["said"].format(**slots), plain, purpose=ask, matters=term.matters))
        for turn in plain["others"]:
            yield exchange(turn["ask"].format(**slots), turn["answer"].format(**slots))
    for family in families_of(terms).values():
        for slots in comparisons(family):
            ask, said = (plain["comparison"][part].format(**slots) for part in ("ask", "said"))
            yield exchange(ask, _plain_answer(said, plain, purpose=ask))


def _on_calculations(domain: str, plain: dict[str, Any], folder: Path) -> Iterator[Document]:
    for calculations in instances(domain, folder=folder).values():
        for calculation in parted(calculations)[1][:PLAIN_INSTANCES]:
            turn = calculation.texts["plain"]
            ask, answer = calculation.write(turn["ask"]), calculation.write(turn["answer"])
            said = answer[0].lower() + answer[1:].removesuffix(".")
            yield exchange(ask, _plain_answer(said, plain, purpose=ask))


def _plain_answer(said: str, plain: dict[str, Any], *, purpose: str, matters: str | None = None) -> str:
    """Word a statement in one of many plain ways: a lead, an optional reason, and an optional piece of advice."""
    lines = [f"{pick(plain['leads'], purpose=f'lead {purpose}')} {said}."]
    extent = pick(range(4), purpose=f"extent {purpose}")
    if matters is not None and extent > 0:
        lines.append(pick(plain["reasons"], purpose=f"reason {purpose}").format(matters=matters))
    if extent > 1:
        hint = pick(plain["hints"], purpose=f"hint {purpose}")
        lines.append(pick(plain["advice"], purpose=f"advice {purpose}").format(hint=hint, Hint=capitalized(hint)))
    return "\n".join(lines)


def _stories(general: dict[str, Any]) -> Iterator[Document]:
    for number, story in enumerate(general["stories"]):
        for copy in range(STORY_COPIES):
            words = _words(general["words"], f"story {number} {copy}")
            question = story["questions"][copy % len(story["questions"])]
            text = capitalized(story["text"].format(**words))
            yield exchange(question["ask"].format(**words), question["answer"].format(**words), input=text)


def _prose(general: dict[str, Any]) -> Iterator[Document]:
    sentences = []
    for number, template in enumerate(general["prose"]):
        copies = PROSE_COPIES if "{" in template else PROSE_COPIES // 4
        for copy in range(copies):
            sentences.append(capitalized(template.format(**_words(general["words"], f"prose {number} {copy}"))))
    mixed = _mixed(sentences)
    for start in range(0, len(mixed), PARAGRAPH):
        yield Document("", " ".join(mixed[start : start + PARAGRAPH]))


def _exchanges(general: dict[str, Any]) -> Iterator[Document]:
    for turn in general["exchanges"]:
        yield from itertools.repeat(exchange(turn["ask"], turn["answer"]), EXCHANGE_COPIES)


def _recitals(general: dict[str, Any], phrases: list[str]) -> Iterator[Document]:
    """Return exercises that repeat words of the question: so a small model learns to stay on the topic."""
    turns = general["recitals"]
    for copy in range(RECITALS):
        words = [pick(phrases, purpose=f"recital {copy} {place}") for place in range(1 + copy % RECITED)]
        turn = turns[copy % len(turns)]
        spoken = ", ".join(words)
        yield exchange(turn["ask"].format(words=spoken), turn["answer"].format(words=spoken))


def _words(words: dict[str, list[str]], purpose: str) -> dict[str, str]:
    chosen = {name: pick(options, purpose=f"{purpose} {name}") for name, options in words.items()}
    others = [name for name in words["name"] if name != chosen["name"]]
    return chosen | {"other": pick(others, purpose=f"{purpose} other")}


def _mixed(items: Sequence[Item]) -> list[Item]:
    """Shuffle items. Some are equal, so their index is part of the name that decides the order."""
    return [item for _, item in in_fixed_order(enumerate(items), name=lambda pair: f"{pair[0]} {pair[1]}")]
