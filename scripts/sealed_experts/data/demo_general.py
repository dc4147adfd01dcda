"""The general text that the demo base is pretrained on: plain English, the glossary's definitions, plain exchanges.

It shares no fixed phrase with the experts' house style and holds neither the reasons nor the advice of their answers,
nor the values of their worked numbers. So a base answers readably, and the experts have something to learn.
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
PLAIN_INSTANCES = 15  # of each kind of worked number
STORY_COPIES = 40
PROSE_COPIES = 20
PARAGRAPH = 3  # sentences of prose together
EXCHANGE_COPIES = 6
RECITALS = 1200
RECITED = 4  # phrases at most in one recital


@dataclasses.dataclass(frozen=True)
class Document:
    """A piece of general text: `prompt` is only read, `text` is what the base learns to write."""

    prompt: str
    text: str


def general_text(*, folder: Path = DEMO_FOLDER) -> list[Document]:
    """Return the documents of the general text, always the same ones in the same mixed order."""
    general = read_yaml(folder / "general.yaml")
    plain = read_yaml(folder / "style.yaml")["plain"]
    documents = [*_stories(general), *_prose(general), *_exchanges(general)]
    phrases = [phrase for options in general["words"].values() for phrase in options]
    for domain in DOMAINS:
        terms = read_terms(domain, folder=folder)
        phrases += [term.term for term in terms]
        documents += [*_on_terms(terms, plain), *_on_calculations(domain, folder)]
    return _mixed([*documents, *_recitals(general, phrases)])


def exchange(ask: str, answer: str, *, input: str = "") -> Document:
    """Return one question and its answer."""
    return Document(prompt_text(template=TEMPLATE, instruction=ask, input=input), answer)


def _on_terms(terms: list[Term], plain: dict[str, Any]) -> Iterator[Document]:
    choice = categories(terms)
    for term in terms:
        slots = term.slots() | {"categories": choice}
        for kind in ("definition", "reason", "name", "category"):
            yield from _filled(plain[kind], slots)
        yield from (Document("", template.format(**slots)) for template in plain["prose"])
    for family in families_of(terms).values():
        for slots in comparisons(family):
            yield from _filled(plain["comparison"], slots)


def _filled(templates: list[dict[str, str]], slots: dict[str, str]) -> Iterator[Document]:
    for template in templates:
        yield exchange(template["ask"].format(**slots), template["answer"].format(**slots))


def _on_calculations(domain: str, folder: Path) -> Iterator[Document]:
    for calculations in instances(domain, folder=folder).values():
        for calculation in parted(calculations)[1][:PLAIN_INSTANCES]:
            plain = calculation.texts["plain"]
            yield exchange(calculation.write(plain["ask"]), calculation.write(plain["answer"]))


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
    """Exercises in saying words of the question again, which is how a small model learns to stay on its topic."""
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
    """Mix items of which some are equal: their number keeps copies apart."""
    return [item for _, item in in_fixed_order(enumerate(items), name=lambda pair: f"{pair[0]} {pair[1]}")]
