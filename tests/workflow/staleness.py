"""The table of docs/staleness.md: read its lines, make their edits in a project, and undo them."""

import contextlib
import copy
import dataclasses
import os
import re
import shutil
from pathlib import Path

import yaml

from tests.workflow.conftest import ROOT, Project

DOCUMENT = ROOT / "docs" / "staleness.md"
MARK = "●"
YEARS_AGO = 1_000_000_000  # seconds since 1970
_ACTION = re.compile(r"(edit|replace|touch|delete|reorder) `([^`]+)`|`([^`]+)`|(use another key|reorder keys)")


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: edits as (action, object), and the jobs that run again as (rule, owner)."""

    title: str
    edits: tuple[tuple[str, str], ...]
    of: tuple[str, ...]
    columns: tuple[str, ...]


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def rules_by_column() -> dict[str, list[str]]:
    """Return the rules of each column, as the document lists them."""
    rows = re.search(r"\| Column \|.*?\n\n", DOCUMENT.read_text(), re.DOTALL)[0].splitlines()[2:]
    return {column: re.findall(r"`(\w+)`", text.split(", if")[0]) for column, text in map(cells_of, filter(None, rows))}


def lines() -> list[Line]:
    """Return the lines of the table of edits."""
    table = re.search(r"\| Edit \| Example .*?\n\n", DOCUMENT.read_text(), re.DOTALL)[0].splitlines()
    header = cells_of(table[0])
    found = []
    for row in table[2:]:
        cells = cells_of(row)
        if not row or cells[0].startswith("**"):
            continue
        assert len(cells) == len(header), f"not as many cells as the header has: {row}"
        assert set(cells[3:]) <= {"", MARK}, row
        found.append(
            Line(
                title=cells[0],
                edits=tuple(map(_edit, cells[1].split("; "))),
                of=tuple(re.findall(r"`(\w+)`", cells[2])) or (("all",) if cells[2] == "all" else ()),
                columns=tuple(name for name, cell in zip(header[3:], cells[3:], strict=True) if cell),
            )
        )
    return found


def _edit(text: str) -> tuple[str, str]:
    match = _ACTION.fullmatch(text.strip())
    assert match, f"docs/staleness.md: no edit that the test knows: {text!r}"
    verb, target, setting, words = match.groups()
    return ("set", setting) if setting else (words, "") if words else (verb, target)


def changed(configuration: dict, edits: tuple[tuple[str, str], ...]) -> dict:
    """Return the configuration with the settings of these edits."""
    new = copy.deepcopy(configuration)
    for verb, target in edits:
        if verb == "set":
            path, _, value = target.partition(": ")
            place = new
            *parents, last = path.split(".")
            for name in parents:
                place = place.setdefault(name, {})
            place[last] = yaml.safe_load(value)
            if place[last] is None:
                del place[last]
        elif verb == "reorder":
            new[target] = dict(reversed(new[target].items()))
        elif verb == "reorder keys":
            new = _reversed_keys(new, keep=("experts",))
    return new


def _reversed_keys(value, *, keep=()):
    """Return mappings in reverse order, at every depth, except those whose order has a meaning."""
    if not isinstance(value, dict):
        return value
    turned = reversed(value.items())
    return {
        key: {name: _reversed_keys(inner) for name, inner in item.items()} if key in keep else _reversed_keys(item)
        for key, item in turned
    }


@contextlib.contextmanager
def edited_files(project: Project, edits: tuple[tuple[str, str], ...], *, aside: Path):
    """Make the edits of files, and undo them at the end, with the file times."""
    undo = []
    for verb, target in edits:
        if verb in ("edit", "replace", "touch", "delete"):
            # Before Python 3.13, `**` at the end finds folders only.
            found = sorted(project.folder.glob(f"{target}/*" if target.endswith("**") else target))
            paths = [path for path in found if verb == "delete" or path.is_file()]
            assert paths or verb == "edit", f"there is nothing to {verb}: {target}"
            undo += [
                _alter(path, verb, aside / f"{len(undo)}.{n}")
                for n, path in enumerate(paths or [project.folder / target])
            ]
    try:
        yield
    finally:
        for path, kept in reversed(undo):
            if path.exists():
                path.unlink()
            if kept is not None:
                kept.rename(path)


def _alter(path: Path, verb: str, kept: Path) -> tuple[Path, Path | None]:
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        assert verb == "edit", f"{path} is not there"
        path.write_text("# New.\n")
        return path, None
    path.rename(kept)  # copy the file itself, so that its time is restored too
    if verb != "delete":
        shutil.copyfile(kept, path)
    if verb in ("edit", "replace"):
        with open(path, "a") as stream:
            stream.write("{}\n" if path.suffix == ".jsonl" else "\n# Edited.\n")
    if verb == "replace":  # by a file with an older time, as `cp -p` and `rsync -a` do
        os.utime(path, (YEARS_AGO, YEARS_AGO))
    return path, kept


def subject(output: str) -> str:
    """Return the owner of an output file: an expert, a dataset, or none."""
    parts = Path(output).parts[1:]
    if parts[0] in ("experts", "data"):
        return parts[1]
    return Path(output).stem if parts[0] == "packages" else ""
