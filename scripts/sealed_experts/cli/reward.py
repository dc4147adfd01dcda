"""`sealed-experts reward`: score answers as training does."""

import argparse
import codecs
import contextlib
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealed_experts.errors import UserError

if TYPE_CHECKING:
    from sealed_experts.rewards import Score
    from sealed_experts.rewards.making.checked import CheckedReward

# `rewards` and `settings` are imported by the functions that need them: other commands start without them.

_STANDARD_INPUT = "-"
_UNKNOWN = "–"
_REPETITION = "repetition"
_FIELDS = ("prompt", "response")
_EXAMPLES = """\
examples:
  sealed-experts reward finance --prompt "What is a bond?" --response "A bond is a loan to its issuer."
  sealed-experts reward finance --file answers.jsonl
  sealed-experts reward keyword_contains --options '{"keywords": ["fee"]}' --prompt … --response …
  sealed-experts reward my_rewards:brevity --file - --json < answers.jsonl
"""


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `reward`."""
    parser = subparsers.add_parser(
        "reward",
        help="score answers as training does",
        description="Score one answer, or a file of answers, and show how each part adds to the reward.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a reward that --list shows, or your own as module:function"
    )
    parser.add_argument("--list", action="store_true", help="list the rewards")
    parser.add_argument("--prompt", metavar="P", help="the question")
    parser.add_argument("--response", metavar="R", help="the answer to score")
    parser.add_argument(
        "--file",
        metavar="F",
        help='score every line {"prompt": …, "response": …} of a JSONL file; - reads standard input',
    )
    parser.add_argument(
        "--options",
        metavar="O",
        help="the reward's options, as in a configuration: {…} in JSON or YAML, or a file that holds them",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer")
    parser.set_defaults(run=reward, usage_error=parser.error)


def reward(args: argparse.Namespace) -> int:
    """Print scores; return 0.

    Raises:
        UserError: the reward is unknown or fails, or the file holds a bad line.
    """
    problem = _usage_problem(args)
    if problem is not None:
        args.usage_error(problem)
    if args.list:
        _print_list(as_json=args.json)
        return 0
    from sealed_experts.rewards.making.maker import make_reward

    options = _options(args.options)
    with _own_output_aside():
        judge = make_reward(args.name, options)
    answers = [(args.prompt, args.response)] if args.file is None else _answers(args.file)
    scores = (_score(judge, prompt, response) for prompt, response in answers)
    if args.json:
        for score in scores:
            print(json.dumps({"reward": score.value, "axes": dict(score.axes)}))
        return 0
    table = _Table(weights=judge.weights, penalised=judge.repetition_penalty > 0)
    lines = table.of_one(next(scores)) if args.file is None else table.of_many(list(scores))
    print("\n".join(lines))
    return 0


def _score(judge: "CheckedReward", prompt: str, response: str) -> "Score":
    with _own_output_aside():
        return judge.score(prompt, response)


def _own_output_aside() -> AbstractContextManager[object]:
    """Keep what a user's function prints out of the scores."""
    return contextlib.redirect_stdout(sys.stderr)


def _usage_problem(args: argparse.Namespace) -> str | None:
    pair = [option for option in ("--prompt", "--response") if getattr(args, option[2:]) is not None]
    if args.list:
        others = [*pair, *(option for option in ("--file", "--options") if getattr(args, option[2:]) is not None)]
        return f"--list stands alone, without {others[0] if others else 'NAME'}" if others or args.name else None
    if args.name is None:
        return "name a reward; --list shows them"
    if args.file is not None:
        return f"--file holds prompts and responses: remove {pair[0]}" if pair else None
    if not pair:
        return "give --prompt and --response, or --file"
    return "--prompt and --response go together: give both" if len(pair) == 1 else None


def _print_list(*, as_json: bool) -> None:
    from sealed_experts.rewards import REWARDS

    known = {name: reward.about for name, reward in REWARDS.items()}
    known["module:function"] = "your own function, f(prompt, response)"
    if as_json:
        print(json.dumps(known))
        return
    width = max(map(len, known))
    print("\n".join(f"{name.ljust(width)}  {text}" for name, text in known.items()))


def _options(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    from sealed_experts.settings.reading import read_file, read_text

    return read_text(text, origin="--options") if text.lstrip().startswith("{") else read_file(text)


def _answers(file: str) -> Iterator[tuple[str, str]]:
    """Yield (prompt, response) of every line.

    Raises:
        UserError: the file cannot be read, is empty, or a line is not such an object.
    """
    place = "standard input" if file == _STANDARD_INPUT else file
    number = 0
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            yield _answer(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{place}:{number}")
    if not number:
        raise UserError(f'{place} holds no answers: write one {{"prompt": …, "response": …}} per line')


def _opened(file: str) -> AbstractContextManager[Iterable[bytes]]:
    if file == _STANDARD_INPUT:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _answer(line: bytes, place: str) -> tuple[str, str]:
    from sealed_experts.files.canonical import strict_json

    try:
        values = strict_json(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{place}: not JSON ({error}); write {{"prompt": …, "response": …}}') from error
    if not isinstance(values, dict):
        raise UserError(f'{place}: this is {type(values).__name__}, not an object {{"prompt": …, "response": …}}')
    for name in _FIELDS:
        if not isinstance(values.get(name), str):
            found = f"is {type(values[name]).__name__}" if name in values else "is missing"
            raise UserError(f"{place}: `{name}` {found}; it must be text")
    return values["prompt"], values["response"]


@dataclasses.dataclass(frozen=True)
class _Table:
    """Scores for people: every axis with its weight, and what it adds to the reward."""

    weights: Mapping[str, float]
    penalised: bool

    def of_one(self, score: "Score") -> list[str]:
        rows = [("axis", "value", "weight", "contribution")]
        for axis, value in score.axes.items():
            rows.append((axis, f"{value:.3f}", _figure(self.weights.get(axis)), _figure(self._part(axis, [score]))))
        return [f"reward {score.value:.3f}", "", *_aligned(rows)]

    def of_many(self, scores: Sequence["Score"]) -> list[str]:
        values = [score.value for score in scores]
        mean = statistics.fmean(values)
        rows = [("axis", "mean", "weight", "share of reward")]
        for axis in scores[0].axes:
            part = self._part(axis, scores)
            share = f"{100 * part / mean:.1f} %" if part is not None and mean > 0 else _UNKNOWN
            rows.append((axis, f"{_mean(axis, scores):.3f}", _figure(self.weights.get(axis)), share))
        answers = "1 answer" if len(scores) == 1 else f"{len(scores)} answers"
        spread = f"std {statistics.pstdev(values):.3f}, min {min(values):.3f}, max {max(values):.3f}"
        return [f"{answers}: mean reward {mean:.3f}, {spread}", "", *_aligned(rows)]

    def _part(self, axis: str, scores: Sequence["Score"]) -> float | None:
        """Return the mean contribution of an axis; for the penalty, the mean amount that it takes away."""
        if axis in self.weights:
            return self.weights[axis] * _mean(axis, scores)
        if axis == _REPETITION and self.penalised:
            return statistics.fmean(score.value - self._before_penalty(score) for score in scores)
        return None

    def _before_penalty(self, score: "Score") -> float:
        return math.fsum(weight * score.axes[axis] for axis, weight in self.weights.items())


def _mean(axis: str, scores: Sequence["Score"]) -> float:
    return statistics.fmean(score.axes[axis] for score in scores)


def _figure(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
