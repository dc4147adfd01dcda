"""`sealed-experts watch`: show every expert and stage of a run, live."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sealed_experts.cli.progress import StageProgress, found_stages, read_progress, watched
from sealed_experts.errors import UsageError, UserError
from sealed_experts.files.locks import is_locked

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_STYLES = {
    "waiting": "dim",
    "running": "cyan",
    "resumed": "cyan",
    "done": "green",
    "failed": "bold red",
    "interrupted": "yellow",
}
_URGENCY = {"failed": 0, "interrupted": 1, "running": 2, "resumed": 2, "waiting": 3, "done": 4}
_FIRST_COLUMNS = ("Expert", "Stage", "State", "Progress", "Step")
_LAST_COLUMNS = ("ε", "Tokens/s", "Left")
_MOST_NOTES = 5  # errors and notes under the table
_LONGEST_INTERVAL = 3600
_UNKNOWN = "–"

RUN_LOCK = Path(".snakemake/run")  # in the folder that holds the results

Read = Callable[[], list[StageProgress]]
Ends = Callable[[Sequence[StageProgress]], bool]


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `watch`."""
    parser = subparsers.add_parser(
        "watch",
        help="show the progress of every expert and stage",
        description="Show every expert and stage: progress, loss or reward, ε spent, speed, time left, state. With "
        "--config it ends when all stages are done and no run is active. Ctrl-C ends it at any time and does not "
        "disturb the run.",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="the run's configuration files, in the order given to Snakemake (default: show every stage that began)",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="the run's results (default: results)")
    parser.add_argument("--once", action="store_true", help="print the present state and exit")
    parser.add_argument("--json", action="store_true", help="with --once: print one JSON object")
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between updates (default: 1)"
    )
    parser.set_defaults(run=watch)


def watch(args: argparse.Namespace) -> int:
    """Show the run until its stages are done; return 0."""
    if args.json and not args.once:
        raise UsageError("--json prints one state of the run: give --once with it")
    planned = _planned_stages(args.config) if args.config else None

    def read() -> list[StageProgress]:
        stages = found_stages(args.results) if planned is None else planned
        return read_progress(results=args.results, stages=stages, now=time.time())

    def ends(stages: Sequence[StageProgress]) -> bool:
        # Stages that an active run has not reached yet are still marked done from the last run.
        return planned is not None and _all_done(stages) and not is_locked(args.results.parent / RUN_LOCK)

    if planned is None and not args.results.is_dir():
        raise UserError(f"{args.results} is not a folder: run this from the repository's root, or give --results")
    try:
        if args.json:
            print(json.dumps({"stages": [dataclasses.asdict(progress) for progress in read()]}))
        elif args.once:
            _show_once(read(), sys.stdout)
        elif sys.stdout.isatty():
            _show_live(read, ends, interval=args.interval)
        else:
            _show_changes(read, ends, sys.stdout, interval=args.interval)
    except KeyboardInterrupt:
        pass  # the usual way to end it
    return 0


def plain_line(progress: StageProgress) -> str:
    """Return a stage's progress as one line of text."""
    parts = [progress.state]
    if progress.state == "resumed" and progress.resumed_from is not None:
        parts[0] += f" after step {progress.resumed_from}"
    if _ended_early(progress):
        parts[0] += f" at step {progress.step} of {progress.max_steps}: {progress.note}"
    elif progress.step is not None and progress.max_steps:
        parts.append(f"step {progress.step} of {progress.max_steps} ({progress.step / progress.max_steps:.0%})")
    for head, (_, words) in watched(progress.stage).items():
        if (value := progress.figures.get(head)) is not None:
            parts.append(f"{words} {value:.3f}")
    if progress.epsilon is not None:
        parts.append(f"ε {_spent(progress)}")
    if progress.tokens_per_second is not None and progress.seconds_left is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
        parts.append(f"{_clock(progress.seconds_left)} left")
    if progress.error is not None:
        parts.append(progress.error)
    elif progress.note is not None and not _ended_early(progress):
        parts.append(progress.note)
    return f"{progress.expert} {progress.stage}: {', '.join(parts)}"


def _ended_early(progress: StageProgress) -> bool:
    return progress.state == "done" and progress.note is not None


def summary_line(stages: Sequence[StageProgress]) -> str:
    """Return how many stages are in which state, as one line of text."""
    counts = {state: sum(progress.state == state for progress in stages) for state in _STYLES}
    if counts["done"] == len(stages):
        # Only Snakemake can find out whether the configuration or the data changed since.
        return f"all done in the last run: {len(stages)} {'stage' if len(stages) == 1 else 'stages'}"
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def live_view(stages: Sequence[StageProgress], console: "Console") -> "RenderableType":
    """Return the view: the table of stages, errors and notes, and the summary, cut to the size of `console`."""
    from rich.console import Group
    from rich.text import Text

    if not stages:
        return Text("nothing has started yet", style="dim")
    noted = sorted((progress for progress in stages if progress.error or progress.note), key=_urgency)[:_MOST_NOTES]
    notes = [
        Text.assemble(
            (f"{progress.expert} {progress.stage}: ", _STYLES[progress.state]), progress.error or progress.note or ""
        )
        for progress in noted
    ]
    room = max(1, console.height - 4 - 2 * len(notes))
    shown = stages if len(stages) <= room else sorted(stages, key=_urgency)[:room]
    hidden = f"; {len(stages) - len(shown)} stages do not fit here" if len(shown) < len(stages) else ""
    return Group(_fitting_table(shown, console), *notes, Text(summary_line(stages) + hidden, style="dim"))


def _urgency(progress: StageProgress) -> int:
    return _URGENCY[progress.state]


def _fitting_table(stages: Sequence[StageProgress], console: "Console") -> "Table":
    """Return the table, without the columns that do not fit a narrow terminal."""
    wide = console.options.update(width=1000)
    figures = list(dict.fromkeys(head for progress in stages for head in watched(progress.stage)))
    optional = ["Progress", "Tokens/s", *reversed(figures)]
    # If an expert has several rows, its stages distinguish them, so that column goes last.
    several = len({progress.expert for progress in stages}) < len(stages)
    optional.insert(len(optional) if several else 2, "Stage")
    columns = [*_FIRST_COLUMNS, *figures, *_LAST_COLUMNS]
    for dropped in range(len(optional) + 1):
        table = _table(stages, columns=[head for head in columns if head not in optional[:dropped]])
        if console.measure(table, options=wide).maximum <= console.width:
            break
    return table


def _table(stages: Sequence[StageProgress], *, columns: Sequence[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in columns:
        left = header in ("Expert", "Stage", "State", "Progress")
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    for progress in stages:
        cells = _cells(progress)
        table.add_row(*(cells.get(header, Text(_UNKNOWN)) for header in columns))
    return table


def _cells(progress: StageProgress) -> "dict[str, RenderableType]":
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    active = progress.state in ("running", "resumed")
    known = progress.step is not None and progress.max_steps is not None
    speed = progress.tokens_per_second if active else None
    return {
        "Expert": Text(progress.expert),
        "Stage": Text(progress.stage),
        "State": Text(progress.state, style=_STYLES[progress.state]),
        "Progress": ProgressBar(total=progress.max_steps or 1, completed=progress.step or 0, width=16),
        "Step": Text(f"{progress.step}/{progress.max_steps}" if known else _UNKNOWN),
        **{head: Text(_number(value)) for head, value in progress.figures.items()},
        "ε": Text(_UNKNOWN if progress.epsilon is None else _spent(progress)),
        "Tokens/s": Text(_UNKNOWN if speed is None else f"{speed:,.0f}"),
        "Left": Text(_UNKNOWN if progress.seconds_left is None else _clock(progress.seconds_left)),
    }


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"


def _spent(progress: StageProgress) -> str:
    budget = "" if progress.target_epsilon is None else f" of {progress.target_epsilon:.2f}"
    return f"{progress.epsilon:.2f}{budget}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _show_once(stages: Sequence[StageProgress], stream: TextIO) -> None:
    for progress in stages:
        print(plain_line(progress), file=stream)
    print(summary_line(stages) if stages else "nothing has started yet", file=stream, flush=True)


def _show_changes(read: Read, ends: Ends, stream: TextIO, *, interval: float) -> None:
    """Print every stage once, then only those that changed; return when the run `ends`."""
    shown: dict[tuple[str, str], tuple[object, ...]] = {}
    while True:
        stages = read()
        for progress in stages:
            # Speed and time left change all the time: they alone are no news.
            news = (progress.state, progress.step, tuple(progress.figures.values()), progress.error)
            if shown.get((progress.expert, progress.stage)) != news:
                shown[progress.expert, progress.stage] = news
                print(plain_line(progress), file=stream, flush=True)
        if ends(stages):
            print(summary_line(stages), file=stream, flush=True)
            return
        time.sleep(interval)


def _show_live(read: Read, ends: Ends, *, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            stages = read()
            live.update(live_view(stages, console), refresh=True)
            if ends(stages):
                return
            time.sleep(interval)


def _all_done(stages: Sequence[StageProgress]) -> bool:
    return all(progress.state == "done" for progress in stages)


def _planned_stages(files: Sequence[Path]) -> list[tuple[str, str]]:
    from sealed_experts.configuration.resolution import load

    settings = load(files, root=Path.cwd())
    return [(expert.name, stage) for expert in settings.experts for stage in expert.stages]


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _LONGEST_INTERVAL:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to {_LONGEST_INTERVAL}")
    return value
