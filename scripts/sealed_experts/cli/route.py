"""`sealed-experts route`: show which expert would answer a question."""

import argparse
import json
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.moe.configuration import read_mixture
from sealed_experts.moe.router import Decision
from sealed_experts.text import printable


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `route`."""
    parser = subparsers.add_parser(
        "route",
        help="show which expert would answer a question",
        description="Show which expert of a mixture would answer a question, and which of its keywords the question "
        "contains. Loads no model.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="moe_config.json")
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=route)


def route(args: argparse.Namespace) -> int:
    """Print the decision; return 0."""
    decision = read_mixture(args.config).router().decide(asked(args.question))
    if args.json:
        print(json.dumps({"expert": decision.expert, "matched": list(decision.matched)}))
    else:
        print(described(decision))
    return 0


def asked(question: str) -> str:
    """Return a question that is not empty.

    Raises:
        UserError: it is empty.
    """
    if not question.strip():
        raise UserError("the question is empty: write it in quotes after the configuration")
    return question


def described(decision: Decision) -> str:
    """Return which expert answers and why, in one line."""
    if decision.matched:
        return f"{decision.expert} (matched: {printable(', '.join(decision.matched))})"
    return f"{decision.expert} (no keyword matched: the always-active expert answers)"
