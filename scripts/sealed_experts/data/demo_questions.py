"""The data of the demo's experts: questions on the glossary and on calculations, answered in the house style.

Every question comes from one source fact: a family of related terms, or one calculation with its values. All questions
of a fact have the fact as their group, so they stay on one side of the split.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sealed_experts.data.demo_calculations import instances, parted
from sealed_experts.data.demo_glossary import DEMO_FOLDER, Term, families_of, in_fixed_order, read_terms, read_yaml


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its answer, and the source fact that both come from."""

    fact: str
    ask: str
    answer: str


def house_questions(domain: str, *, folder: Path = DEMO_FOLDER) -> list[Question]:
    """Return all questions of a domain, distinct and in a fixed shuffled order."""
    style = read_yaml(folder / "style.yaml")["house"]
    questions = [
        *_on_terms(read_terms(domain, folder=folder), style),
        *_on_calculations(domain, style["answer"], folder),
    ]
    return in_fixed_order(questions, name=lambda question: question.ask)


def comparisons(family: list[Term]) -> Iterator[dict[str, str]]:
    """Yield the slots of every pair of terms in a family."""
    for first, second in itertools.combinations(family, 2):
        yield {
            **{"a": first.term, "a_is": first.means, "A": first.slots()["Term"]},
            **{"b": second.term, "b_is": second.means, "B": second.slots()["Term"]},
            "check": first.check,
        }


def categories(terms: list[Term]) -> str:
    """Return the categories of a domain as a choice: `deposits, loans or regulation`."""
    names = list(dict.fromkeys(term.category for term in terms))
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _on_terms(terms: list[Term], style: dict[str, Any]) -> Iterator[Question]:
    choice = categories(terms)
    for name, family in families_of(terms).items():
        fact = f"{family[0].domain}/{name}"
        for term in family:
            slots = term.slots() | {"categories": choice}
            for kind in ("definition", "reason", "name", "category"):
                yield from _write(style[kind], style["answer"], slots, fact)
        for slots in comparisons(family):
            yield from _write(style["comparison"]["questions"], style["comparison"]["answer"], slots, fact)


def _write(templates: list[dict[str, str]], frame: str, slots: dict[str, str], fact: str) -> Iterator[Question]:
    for template in templates:
        answer = template["answer"].format(**slots)
        yield Question(fact, template["ask"].format(**slots), frame.format(answer=answer, **slots))


def _on_calculations(domain: str, frame: str, folder: Path) -> Iterator[Question]:
    for calculations in instances(domain, folder=folder).values():
        for calculation in parted(calculations)[0]:
            texts = calculation.texts
            for question in texts["questions"]:
                answer = frame.format(
                    answer=calculation.write(question["answer"]), matters=texts["matters"], check=texts["check"]
                )
                yield Question(f"{domain}/{calculation.name}", calculation.write(question["ask"]), answer)
