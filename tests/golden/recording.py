"""Record everything: messages, schemas, rules, and the results of tiny runs."""

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.golden.artifacts import artifacts_of
from tests.golden.comparable import made_with
from tests.golden.mistakes import dry_run_messages, messages
from tests.golden.workplace import Workplace

_LINE = 110  # characters
_QUESTIONS = ("What does the bank do by the river bank?", "Two loans and a bond fund", "portfolios", "Nothing of that")


def record(*, runs: bool = True) -> dict[str, Any]:
    """Return {section: {name: content}} of everything, made in a new folder; without `runs`, of the configuration only.

    Raises:
        RuntimeError: a run failed, or the keys of draws and noise were not pinned.
    """
    with tempfile.TemporaryDirectory() as folder:
        workplace = Workplace(Path(folder) / "golden")
        made = configuration_of(workplace)
        return {"made with": made_with(), **made, **runs_of(workplace)} if runs else made


def configuration_of(workplace: Workplace) -> dict[str, Any]:
    """Return everything that needs no run: schemas, names of rules, and the messages of the configuration check."""
    schemas = sorted((workplace.tree / "config" / "schemas").glob("*.json"))
    return {
        "schemas": {path.name: json.loads(path.read_text()) for path in schemas},
        "workflow": {"rules": _rules(workplace)},
        "messages": {**messages(), "dry_runs": dry_run_messages(workplace)},
    }


def runs_of(workplace: Workplace) -> dict[str, Any]:
    """Run the workflow of the configuration; return its results.

    Raises:
        RuntimeError: a run failed, or the keys for draws and noise were not pinned.
    """
    workplace.tool("run", "--quiet-summary", "--cores", "2", "--configfile", "config/golden.yaml", "--", "all")
    _check_pins(workplace)
    return {"results": artifacts_of(workplace), "routing": _routes(workplace)}


def written(value: Any, *, indent: str = "") -> str:
    """Return JSON with one value per line where it fits, so that git shows each change separately."""
    flat = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(indent) + len(flat) <= _LINE:
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        opening, closing = "{}"
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {written(value[key], indent=inner)}" for key in sorted(value)]
    else:
        opening, closing = "[]"
        parts = [written(item, indent=inner) for item in value]
    lines = ",\n".join(inner + part for part in parts)
    return f"{opening}\n{lines}\n{indent}{closing}"


def _rules(workplace: Workplace) -> list[str]:
    listed = workplace.snakemake("--list-rules")
    if listed.returncode:
        raise RuntimeError(f"snakemake --list-rules failed:\n{listed.stderr}")
    return sorted(listed.stdout.split())


def _routes(workplace: Workplace) -> dict[str, Any]:
    return {
        question: json.loads(workplace.tool("route", "results/moe/moe_config.json", question, "--json").stdout)
        for question in _QUESTIONS
    }


def _check_pins(workplace: Workplace) -> None:
    """Check that every trainer used the pinned key and described its code by the pinned digest."""
    configuration = yaml.safe_load((workplace.tree / "config" / "golden.yaml").read_text())
    noted = workplace.pins.read_text().splitlines()
    trained = {
        (expert, stage)
        for expert, settings in configuration["experts"].items()
        for stage in settings.get("stages", ["sft"])
    }
    keyed = {tuple(line.split()[1:]) for line in noted if line.startswith("key ")}
    if keyed != trained or noted.count("code") < len(trained):
        raise RuntimeError(
            f"pins/sitecustomize.py no longer pins what it must: keys of {sorted(keyed)} instead of {sorted(trained)}, "
            f"and {noted.count('code')} digests of code; put the new names of the patched functions there"
        )
