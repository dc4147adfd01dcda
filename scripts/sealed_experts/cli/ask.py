"""`sealed-experts ask`: let a verified expert answer a question."""

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
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, line and paragraph separators
_GOODBYES = ("exit", "quit")


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `ask`."""
    parser = subparsers.add_parser(
        "ask",
        help="ask the mixture a question",
        description="Verify every package of a mixture, load it, and let one expert answer. The keywords in the "
        "question select the expert. If a package fails verification, a file is missing or the base is another one, "
        "nothing is loaded.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="moe_config.json")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="the question, in quotes")
    parser.add_argument(
        "--interactive", action="store_true", help="ask one question after another; stop with an empty line or Ctrl-D"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="most tokens in an answer (default: 128)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="sampling temperature; 0 is greedy (default: 0)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the sampling, if the temperature is above 0 (default: 0)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (default: auto)"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="file of extra requirements for the packages (docs/keys.md)"
    )
    add_identity(parser)
    parser.set_defaults(run=ask)


def ask(args: argparse.Namespace) -> int:
    """Answer one question, or one after another with --interactive; return 0.

    Raises:
        UserError: there is no question, or the mixture is refused.
    """
    if args.question is None and not args.interactive:
        raise UserError("there is no question: write it in quotes after the configuration, or add --interactive")
    if args.question is not None:
        # Python passes bytes that are not UTF-8 on as surrogates. Tokenizers refuse those.
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
    # All files are on this disk and verified: the libraries need not contact the hub or print anything.
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error"), ("TQDM_DISABLE", "1")):
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)  # meant for developers of the libraries
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
    """Return an answer that is safe to print: a model can be made to write escape sequences or direction marks.

    Zero-width joiners stay, because some scripts and emoji need them.
    """
    return "".join(char if char in _KEPT or unicodedata.category(char) not in _STEERING else "\ufffd" for char in text)


def _questions() -> Iterator[str]:
    """Yield what the user types, with line editing and history, until an empty line or the end of the input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (input() edits lines when it is loaded)

        print("Type a question. An empty line or Ctrl-D ends the session.")
    while True:
        try:
            line = input(_PROMPT if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line or line in _GOODBYES:
            return
        yield line
