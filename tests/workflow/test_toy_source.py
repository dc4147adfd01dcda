"""A source is one file: a new module in the tree can be configured and prepared, and its files make it stale."""

import copy
import json

import pytest

from tests.workflow.conftest import TINY

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

SOURCE = '''
"""Questions and answers on alternate lines of text files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from sealed_experts.data.rows import BadRow, Row
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.data.sources import SplitSource
from sealed_experts.settings.fields import Distinct, setting


class AlternateLines(SplitSource):
    """Text files with questions and answers on alternate lines."""

    source: Literal["alternate_lines"] = setting("Text files.", default="alternate_lines")
    texts: Distinct[str] = setting("The files.", min_length=1)

    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield a record for every two lines."""
        for name in self.texts:
            lines = Path(name).read_text().splitlines()
            for place in range(0, len(lines), 2):
                record = Instruction.of(instruction=lines[place], output=lines[place + 1])
                yield Row(name, place + 1, record)

    def files(self) -> list[str]:
        """The files."""
        return list(self.texts)
'''
PLACES = '''
    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield every file."""
        for name in self.texts:
            yield f"file {(root / name).resolve()}", name
'''
EXTRA = """
    extra = {"no_such_module": "lines"}
"""


@pytest.fixture
def toy(prepared):
    """A project with a dataset `toy` whose source is not in the library."""
    (prepared.folder / "lines.txt").write_text("".join(f"What is {n}?\nIt is {n}.\n" for n in range(40)))
    configuration = copy.deepcopy(TINY)
    configuration["datasets"]["toy"] = {"source": "alternate_lines", "texts": ["lines.txt"], "val_fraction": 0.3}
    configuration["experts"]["banking_expert"]["dataset"] = "toy"
    prepared.configure(configuration)
    return prepared


def drop(project, *parts):
    path = project.folder / "scripts/sealed_experts/data/sources/alternate_lines.py"
    path.write_text("".join((SOURCE, *parts)))


def test_one_new_file_is_a_source(toy, planner):
    drop(toy, PLACES)
    toy.snakemake("results/data/toy/stats.json")
    stats = json.loads((toy.folder / "results/data/toy/stats.json").read_text())
    assert stats["train"]["records"] + stats["val"]["records"] == 40
    assert planner.plan(toy, "results/data/toy/stats.json")[0] == {}
    with open(toy.folder / "lines.txt", "a") as stream:
        stream.write("What is new?\nIt is this.\n")
    assert planner.plan(toy, "results/data/toy/stats.json")[0].keys() == {"prepare_data"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "AlternateLines must define places"),
        (
            (PLACES, EXTRA),
            "alternate_lines needs the extra `lines`, which is not installed: run pip install -c requirem",
        ),
    ],
)
def test_a_source_that_is_not_whole_stops_everything_before_the_first_job(toy, planner, parts, message):
    drop(toy, *parts)
    plan, printed = planner.plan(toy, "all", check=False)
    assert plan == {}
    assert message in printed
