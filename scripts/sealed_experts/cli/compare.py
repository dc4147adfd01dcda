"""`sealed-experts compare`: the base and an expert's stages side by side, on held-out records."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sealed_experts.errors import UserError
from sealed_experts.evaluation.gains import verdict
from sealed_experts.evaluation.rows import Evaluation, figure_rows, model_names, number, shown_gain, signed_interval
from sealed_experts.evaluation.stored import evaluated_experts, evaluation_path, read_evaluation
from sealed_experts.text import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `compare`."""
    parser = subparsers.add_parser(
        "compare",
        help="compare an expert's stages with each other and with the base",
        description="Show the measurements on held-out records before and after each stage: loss, reward and other "
        "metrics with 95% intervals, and whether the gain in reward is significant. These numbers are as private as "
        "the records.",
    )
    parser.add_argument("experts", nargs="*", metavar="EXPERT", help="which experts (default: all that were evaluated)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the run's results (default: results)")
    parser.add_argument("--samples", action="store_true", help="also show sample answers, side by side")
    parser.add_argument("--json", action="store_true", help="print the evaluations as JSON")
    parser.set_defaults(run=compare)


def compare(args: argparse.Namespace) -> int:
    """Print the evaluations; return 0."""
    evaluations = [
        read_evaluation(evaluation_path(args.results, name)) for name in _wanted(args.experts, results=args.results)
    ]
    if args.json:
        experts = [{**evaluation, "verdict": verdict(evaluation)} for evaluation in evaluations]
        print(json.dumps({"experts": experts}))
        return 0
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    for index, evaluation in enumerate(evaluations):
        if index:
            console.print()
        show_evaluation(evaluation, console, samples=args.samples)
    return 0


def show_evaluation(evaluation: Evaluation, console: "Console", *, samples: bool) -> None:
    """Print one expert's evaluation, fitted to the terminal's width."""
    from rich.text import Text

    console.print(Text(evaluation["expert"], style="bold"), Text(_measured(evaluation), style="dim"))
    console.print(_fitting_figures(evaluation, console))
    for text, style in _gain_lines(evaluation):
        console.print(Text(text, style=style))
    for index, sample in enumerate(evaluation["samples"] if samples else [], 1):
        console.print(Text(f"\nPrompt {index}: {visible(sample['prompt'])}", style="bold"))
        console.print(_answers(evaluation, sample))
    if samples and not evaluation["samples"]:
        console.print(Text("no sample answers: no metric of this expert needs any", style="dim"))


def _wanted(names: Sequence[str], *, results: Path) -> list[str]:
    if not results.is_dir():
        raise UserError(f"{results} is not a folder: run this from the repository's root, or give --results")
    evaluated = evaluated_experts(results)
    for name in names:
        if name not in evaluated:
            raise UserError(_missing(name, evaluated, results=results))
    if not evaluated:
        raise UserError(f"no expert in {results} was evaluated yet: `make run` evaluates them when they are trained")
    return list(dict.fromkeys(names)) or evaluated


def _missing(name: str, evaluated: Sequence[str], *, results: Path) -> str:
    known = f"evaluated are {', '.join(evaluated)}" if evaluated else "none is evaluated yet"
    folders = {path.name for path in (results / "experts").glob("*") if path.is_dir()}
    if name in folders:
        return f"{name} has no evaluation yet in {results}: `make run` makes it once its stages are trained; {known}"
    return f"no expert in {results} is called {name!r}; {known}"


def _measured(evaluation: Evaluation) -> str:
    records, reward = evaluation["records"], evaluation["reward"]
    scored = f", scored by {reward['name']}" if reward else ""
    return f"on {records['held_out']} held-out records of {evaluation['dataset']}{scored}"


def _fitting_figures(evaluation: Evaluation, console: "Console") -> "Table":
    """Return the table of figures. On a narrow terminal the intervals are below the means."""
    wide = _figures(evaluation, before_interval=" ")
    room = console.measure(wide, options=console.options.update(width=1000)).maximum
    return wide if room <= console.width else _figures(evaluation, before_interval="\n")


def _figures(evaluation: Evaluation, *, before_interval: str) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for name in model_names(evaluation):
        table.add_column(name, justify="right")
    for row in figure_rows(evaluation):
        table.add_row(Text(row.label), *(Text(cell.replace(" [", f"{before_interval}[")) for cell in row.cells))
    return table


def _gain_lines(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the lines about the change that the reward's stage, or the last one, made, each with its style."""
    gain, judged = shown_gain(evaluation), verdict(evaluation)
    if gain is None:
        return []
    names, lines = f"{gain['from']} → {gain['to']}", []
    if judged is not None:
        changed = signed_interval(gain["metrics"]["reward"])
        lines.append((f"Gain in reward, {names}: {changed}; it {judged}", _style(judged)))
    lines += [
        (f"{about['title']}, {names}: {signed_interval(gain['metrics'][about['metric']])}", "dim")
        for about in evaluation["metrics"]
        if about["metric"] != "reward" and "." not in about["metric"] and about["metric"] in gain["metrics"]
    ]
    return lines


def _style(judged: str) -> str:
    return "green" if judged == "counts" else "yellow"


def _answers(evaluation: Evaluation, sample: Evaluation) -> "RenderableType":
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    table = Table(box=HORIZONTALS, expand=True, header_style="bold", show_edge=False, pad_edge=False)
    answers = {"reference": sample["reference"], **{name: sample["answers"][name] for name in model_names(evaluation)}}
    for name, answer in answers.items():
        table.add_column(Text("\n".join([name, *_scores(answer)])), ratio=1, overflow="fold")
    table.add_row(*(Text(_shown(answer)) for answer in answers.values()))
    return table


def _scores(answer: Evaluation) -> list[str]:
    """Return an answer's scores, without the parts of a score."""
    return [f"{name} {number(value, '.2f')}" for name, value in answer["scores"].items() if "." not in name]


def _shown(answer: Evaluation) -> str:
    text = visible(answer["text"])
    return f"{text} …" if answer.get("truncated") else text
