"""The demo's own finance questions, made on the spot from config/demo/."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sealed_experts.data.demo_glossary import DEMO_FOLDER
from sealed_experts.data.demo_questions import house_questions
from sealed_experts.data.sources.rows import BadRow, Row
from sealed_experts.settings.sources import DatasetSettings, DemoSource


def read(settings: DemoSource, *, parts: Sequence[Path] = (), folder: Path = DEMO_FOLDER) -> Iterator[Row | BadRow]:
    """Yield at most `settings.records` questions of the domain, always the same; the group is the source fact."""
    questions = house_questions(settings.domain, folder=folder)
    for line, question in enumerate(questions[: settings.records], 1):
        yield Row(
            file=f"{folder}/{settings.domain}",
            line=line,
            instruction=question.ask,
            output=question.answer,
            group=question.fact,
        )


def count_upper_bound(settings: DemoSource, *, datasets: Mapping[str, DatasetSettings]) -> int | None:
    """Return how many records were asked for."""
    return settings.records
