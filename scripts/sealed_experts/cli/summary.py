"""`sealed-experts summary`: show what a run made, where it is, and what to try next."""

import argparse
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sealed_experts.cli.progress import cut_short
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.moe.configuration import Member, Mixture, read_mixture
from sealed_experts.text import printable
from sealed_experts.training.objectives import STAGES

_METRICS = ("training_metrics.json", "rl_metrics.json")
_MOST_EXPERTS = 20
_UNKNOWN = "–"
_COLUMNS = ("Expert", "Stage", "ε", "at δ", "Held-out loss", "Size", "Package")


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `summary`."""
    parser = subparsers.add_parser(
        "summary",
        help="show what a run made, where it is, and what to try next",
        description="Show the experts of a mixture with their privacy, held-out loss and packages.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="moe_config.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=summary)


def summary(args: argparse.Namespace) -> int:
    """Print the summary of a mixture; return 0."""
    if args.json:
        print(json.dumps(_content(read_mixture(args.config))))
    else:
        print_summary(args.config)
    return 0


def print_summary(config: Path, *, stream: TextIO | None = None) -> None:
    """Print a summary of the mixture at `config`, to `stream` or standard output.

    Raises:
        UserError: the configuration cannot be read.
    """
    mixture = read_mixture(config)
    print("\n".join(summary_lines(mixture)), file=stream or sys.stdout, flush=True)


def summary_lines(mixture: Mixture) -> list[str]:
    """Return the lines of the summary. The file is unsigned, so its texts are made safe for a terminal."""
    shown = mixture.members[:_MOST_EXPERTS]
    hidden = len(mixture.members) - len(shown)
    lines = [
        f"The mixture {_shown(mixture.path)} holds {len(mixture.members)} experts on the base {mixture.model}:",
        "",
        *_table([_COLUMNS, *(_row(member, mixture.privacy["experts"].get(member.name, {})) for member in shown)]),
        *([f"… and {hidden} more"] if hidden else []),
        *(note for member in shown for note in _notes(member)),
        "",
        _privacy_line(mixture.privacy),
        "",
        "Try next:",
        *(f"  {command}" for command in _commands(mixture)),
    ]
    return [printable(line) for line in lines]


def _row(member: Member, privacy: Mapping[str, Any]) -> tuple[str, ...]:
    metrics = _metrics_of(member)
    before, after = metrics.get("first_val_loss"), metrics.get("final_val_loss")
    loss = _UNKNOWN
    if before is not None or after is not None:
        start = next(iter(_stages_before(member, metrics)), "base")
        # Name where the first loss was measured: after the stage before, so a rise is not a rise since the base.
        loss = f"{_number(before, 3)} ({start}) → {_number(after, 3)} ({member.stage})"
    epsilon, delta = privacy.get("epsilon"), privacy.get("delta")
    claim = (_number(epsilon, 2), _UNKNOWN if epsilon is None or delta is None else _small(delta))
    return member.name, member.stage, *claim, loss, _size(member.package), _shown(member.package)


def _metrics_of(member: Member) -> Mapping[str, Any]:
    """Return the metrics next to the expert's checkpoint; none if only the packages were copied here."""
    return next(_metrics_in(member.checkpoint.parent), {})


def _metrics_in(folder: Path) -> Iterator[Mapping[str, Any]]:
    for name in _METRICS:
        path = folder / name
        if path.is_file():
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path} must hold an object: delete it and run `make run` again")
            yield content


def _stages_before(member: Member, metrics: Mapping[str, Any]) -> list[str]:
    """Return the stages before the chosen one in its chain; none for the first."""
    privacy = metrics.get("privacy")
    counted = privacy.get("stage_epsilon") if isinstance(privacy, dict) else None
    return [stage for stage in counted if stage != member.stage] if isinstance(counted, dict) else []


def _notes(member: Member) -> Iterator[str]:
    """Yield a line for each stage of the chain, up to the chosen one, that ended before its last step."""
    before = _stages_before(member, _metrics_of(member))
    folders = [member.checkpoint.parent.parent / STAGES[stage].folder() for stage in before if stage in STAGES]
    for metrics in itertools.chain.from_iterable(map(_metrics_in, [*folders, member.checkpoint.parent])):
        if reason := cut_short(metrics):
            yield f"{member.name}: {metrics.get('stage', member.stage)} ended early, {_at(metrics)}{reason}"


def _at(metrics: Mapping[str, Any]) -> str:
    return f"after step {metrics['total_steps']}: " if "total_steps" in metrics else ""


def _content(mixture: Mixture) -> dict[str, Any]:
    """Return the summary for --json. Null means: not known."""
    experts = []
    for member in mixture.members:
        metrics, privacy = _metrics_of(member), mixture.privacy["experts"].get(member.name, {})
        experts.append(
            {
                "name": member.name,
                "stage": member.stage,
                "epsilon": privacy.get("epsilon"),
                "delta": privacy.get("delta"),
                **{name: metrics.get(name) for name in ("first_val_loss", "final_val_loss", "stopped_reason")},
                "package": str(member.package),
            }
        )
    privacy = {name: mixture.privacy[name] for name in ("epsilon", "delta", "reason")}
    return {"config": str(mixture.path), "model": mixture.model, "experts": experts, "privacy": privacy}


def _privacy_line(privacy: Mapping[str, Any]) -> str:
    if privacy["epsilon"] is None:
        return f"Privacy of the whole mixture: no ε is claimed ({privacy['reason']})."
    return (
        f"Privacy of the whole mixture: ε = {privacy['epsilon']:.2f} at δ = {_small(privacy['delta'])}, all experts and"
        " stages together."
    )


def _commands(mixture: Mixture) -> list[str]:
    local = Path(".venv/bin/sealed-experts")
    program = str(local) if local.exists() else "sealed-experts"
    config = shlex.quote(_shown(mixture.path))
    keywords = [member.keywords[0] for member in mixture.members if member.keywords]
    question = shlex.quote(f"What is {_article(keywords[0])}?" if keywords else "What can you tell me?")
    package = shlex.quote(_shown(mixture.members[0].package))
    return [
        f"{program} ask {config} {question}",
        f"{program} ask {config} --interactive",
        f"{program} route {config} {question}",
        f"{program} verify {package}",
        "make report",
    ]


def _article(keyword: str) -> str:
    if keyword.endswith("s") or not keyword.islower() or " " in keyword:
        return keyword
    return f"{'an' if keyword[0] in 'aeiou' else 'a'} {keyword}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else _UNKNOWN


def _small(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-")


def _size(path: Path) -> str:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
