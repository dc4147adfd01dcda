"""`sealed-experts ask`: a verified expert answers."""

import argparse
import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sealed_experts.cli.packages import add_identity, identity_of
from sealed_experts.cli.route import asked, described
from sealed_experts.errors import UserError, shown

if TYPE_CHECKING:
    from sealed_experts.moe.engine import Answer, Engine

_PROMPT = "you> "
_KEPT = "\n\t\u200c\u200d"
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, half a character, separators of lines and paragraphs
_GOODBYES = ("exit", "quit")


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `ask`."""
    parser = subparsers.add_parser(
        "ask",
        help="ask the mixture a question",
        description="Verify every package of a mixture, load it, and let the expert that the question's keywords call "
        "answer. A package that fails verification, a missing file or another base: refused, and nothing is loaded.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="moe_config.json")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="the question, in quotes")
    parser.add_argument("--interactive", action="store_true", help="go on asking; an empty line or Ctrl-D ends it")
    parser.add_argument("--json", action="store_true", help="print one JSON object an answer")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default: 128)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default, takes the likeliest words"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which of the answers that a temperature allows (default: 0)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (default: auto)"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="what is required of the packages (docs/keys.md)")
    add_identity(parser)
    parser.set_defaults(run=ask)


def ask(args: argparse.Namespace) -> int:
    """Answer the question, or one after another; return 0.

    Raises:
        UserError: there is no question, or the mixture is refused.
    """
    if args.question is None and not args.interactive:
        raise UserError("there is no question: write it in quotes after the configuration, or add --interactive")
    if args.question is not None:
        # Bytes of the command line that are no text travel as surrogates, which no tokenizer takes.
        args.question = asked(args.question).encode(errors="surrogateescape").decode(errors="replace")
    engine = _engine(args)
    if args.question is not None:
        _show(_answer(engine, args.question, args), as_json=args.json)
    if args.interactive:
        for question in _questions():
            try:
                _show(_answer(engine, question, args), as_json=args.json)
            except UserError as error:
                print(f"error: {shown(error)}", file=sys.stderr)
    return 0


def _engine(args: argparse.Namespace) -> "Engine":
    # What is loaded is on this disk and verified; the libraries need neither ask the hub nor report on it.
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error"), ("TQDM_DISABLE", "1")):
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)  # one library to another, about their next versions
    from sealed_experts.moe.engine import Engine
    from sealed_experts.packages.keys.policy import Policy
    from sealed_experts.packages.keys.trust import load_trust

    policy = Policy() if args.policy is None else Policy.read(args.policy)
    identity = identity_of(args.identity)
    return Engine.load(args.config, trust=load_trust(), policy=policy, identity=identity, device=args.device)


def _answer(engine: "Engine", question: str, args: argparse.Namespace) -> "Answer":
    return engine.answer(question, max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)


def _show(answer: "Answer", *, as_json: bool) -> None:
    if as_json:
        content = {"expert": answer.expert, "matched": list(answer.matched), "answer": answer.text}
        print(json.dumps(content), flush=True)
    else:
        print(f"{described(answer)}:\n{_printable(answer.text)}\n", flush=True)


def _printable(text: str) -> str:
    """Return what may go to a terminal: a model can be made to say escape sequences, or to turn the reading direction.

    The joiners stay, which some scripts and emoji need.
    """
    return "".join(char if char in _KEPT or unicodedata.category(char) not in _STEERING else "\ufffd" for char in text)


def _questions() -> Iterator[str]:
    """Yield what the person types, with line editing and history, until an empty line or the end of input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (input() edits lines when it is loaded)

        print("Ask away; an empty line or Ctrl-D ends it.")
    while True:
        try:
            line = input(_PROMPT if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line or line in _GOODBYES:
            return
        yield line
