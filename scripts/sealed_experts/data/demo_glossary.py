"""The demo's finance glossary, read from config/demo/: one YAML file per category."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sealed_experts.errors import UserError

DEMO_FOLDER = Path("config/demo")
DOMAINS = ("banking", "investment")
CALCULATIONS = "calculations.yaml"
ARTICLES = ("a ", "an ", "the ")

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Term:
    """One entry: `term` with its article, what it `means`, why it `matters`, and its category's advice to `check`."""

    domain: str
    category: str
    topic: str
    family: str
    term: str
    means: str
    matters: str
    check: str

    @property
    def bare(self) -> str:
        """The term without its article."""
        article = next((article for article in ARTICLES if self.term.startswith(article)), "")
        return self.term.removeprefix(article)

    def slots(self) -> dict[str, str]:
        """Return the words that question and answer templates may use."""
        return {
            "term": self.term,
            "Term": capitalized(self.term),
            "bare": self.bare,
            "is": self.means,
            "matters": self.matters,
            "category": self.category,
            "topic": self.topic,
            "check": self.check,
        }


def demo_files(folder: Path = DEMO_FOLDER) -> list[str]:
    """Return all files that the demo's data and its base are made from, sorted."""
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def read_terms(domain: str, *, folder: Path = DEMO_FOLDER) -> list[Term]:
    """Return a domain's terms in the order of its files.

    Raises:
        UserError: a file is missing or does not have the glossary's form.
    """
    terms = []
    for path in sorted((folder / domain).glob("*.yaml")):
        if path.name == CALCULATIONS:
            continue
        data = read_yaml(path)
        try:
            terms += [
                Term(
                    domain, data["category"], data["topic"], family, term, entry["is"], entry["matters"], data["check"]
                )
                for family, entries in data["families"].items()
                for term, entry in entries.items()
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not a glossary: give category, topic, check and families of terms ({error!r})"
            ) from error
    if not terms:
        raise UserError(f"{folder / domain} holds no glossary: run from the repository's root, where config/demo/ is")
    return terms


def families_of(terms: Sequence[Term]) -> dict[str, list[Term]]:
    """Return the terms by family; a family's name is unique in its domain."""
    families: dict[str, list[Term]] = {}
    for term in terms:
        families.setdefault(f"{term.category}/{term.family}", []).append(term)
    return families


@functools.cache
def read_yaml(path: Path) -> Any:
    """Read one of the demo's YAML files, with libyaml's fast parser if it is available.

    Raises:
        UserError: the file is missing or not YAML.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 (both are safe loaders)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: run from the repository's root, where config/demo/ is") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def capitalized(text: str) -> str:
    """Return the text with a capital first letter; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def in_fixed_order(items: Iterable[Item], *, name: Callable[[Item], str]) -> list[Item]:
    """Return the items shuffled, always in the same order: by SHA-256 of their names."""
    return sorted(items, key=lambda item: hashlib.sha256(name(item).encode()).digest())


def pick(options: Sequence[Item], *, purpose: str) -> Item:
    """Return one of the options, always the same one for a given purpose."""
    number = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    return options[number % len(options)]
