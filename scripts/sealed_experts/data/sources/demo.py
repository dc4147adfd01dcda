"""The demo's finance questions, generated from config/demo/."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from sealed_experts.data.demo_glossary import DEMO_FOLDER, demo_files
from sealed_experts.data.demo_questions import house_questions
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.rows import BadRow, Row
from sealed_experts.data.sources import Source, SplitSource
from sealed_experts.settings.fields import setting


class Demo(SplitSource):
    """Finance questions and answers, generated from the glossary and facts in config/demo/."""

    source: Literal["demo"] = setting("The built-in demo.", default="demo")
    domain: Literal["banking", "investment"] = setting("Which half of the demo data.", default="banking")
    records: int = setting("Largest number of records to generate.", default=2500, ge=50)
    public_evaluation: bool = setting("The demo's records are not private.", default=True)

    def read(self, *, parts: Sequence[Path] = (), folder: Path = DEMO_FOLDER) -> Iterator[Row | BadRow]:
        """Yield at most `records` questions of the domain, always the same ones; the group is the source fact."""
        questions = house_questions(self.domain, folder=folder)
        for line, question in enumerate(questions[: self.records], 1):
            yield Row(
                file=f"{folder}/{self.domain}",
                line=line,
                record=Instruction.of(instruction=question.ask, output=question.answer),
                group=question.fact,
            )

    def count_upper_bound(self, datasets: Mapping[str, Source]) -> int | None:
        """Return `records`."""
        return self.records

    def files(self) -> list[str]:
        """Return the files of the demo's facts."""
        return demo_files()

    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield the domain."""
        yield f"demo {self.domain}", self.domain
