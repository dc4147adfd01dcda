"""`sealed-experts`: the command line for people."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from sealed_experts import __version__
from sealed_experts.cli import ask, keys, packages, route, run, summary, watch
from sealed_experts.errors import reports_user_errors

_ROOMS = (run, watch, summary, route, ask, packages, keys)
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_EXAMPLES = """\
examples:
  sealed-experts run                                 make everything config/config.yaml asks for
  sealed-experts watch                               follow it from another terminal
  sealed-experts route results/moe/moe_config.json "What is a mortgage?"
  sealed-experts ask results/moe/moe_config.json "What is a mortgage?"
  sealed-experts ask results/moe/moe_config.json --interactive
  sealed-experts verify results/packages/banking_expert.tgsp

`sealed-experts COMMAND --help` explains a command.
"""


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ε gets a question mark, not a traceback
    try:
        args = _parsed(list(sys.argv[1:] if argv is None else argv))
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone: what Python flushes on exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="sealed-experts",
        description="Private domain experts, sealed in signed packages and assembled into a routed mixture.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sealed-experts {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for room in _ROOMS:
        room.add_parsers(subparsers)
    return top


def _parsed(argv: list[str]) -> argparse.Namespace:
    # What follows `run` is Snakemake's: argparse would reorder it and swallow a `--`.
    if argv[:1] == ["run"] and not {"-h", "--help"} & set(argv):
        args = parser().parse_args(["run"])
        args.arguments = argv[1:]
        return args
    return parser().parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
