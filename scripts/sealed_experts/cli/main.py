"""`sealed-experts`: the command line."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from sealed_experts import __version__
from sealed_experts.cli import ask, compare, keys, packages, publishing, registry, reward, route, run, summary, watch
from sealed_experts.errors import UserError, reports_user_errors

_ROOMS = (run, watch, summary, compare, route, ask, reward, packages, publishing, registry, keys)
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_EXAMPLES = """\
examples:
  sealed-experts run                                 make everything that config/config.yaml asks for
  sealed-experts watch                               follow the run from another terminal
  sealed-experts route results/moe/moe_config.json "What is a mortgage?"
  sealed-experts ask results/moe/moe_config.json "What is a mortgage?"
  sealed-experts ask results/moe/moe_config.json --interactive
  sealed-experts reward finance --prompt "What is a mortgage?" --response "A loan on a house."
  sealed-experts verify results/packages/banking_expert.tgsp
  sealed-experts publish results/packages/banking_expert.tgsp
  sealed-experts install results/packages/banking_expert.tgsp --base results/base/demo

`sealed-experts COMMAND --help` explains a command.
"""


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _prepare_streams()
    try:
        try:
            args = _parsed(list(sys.argv[1:] if argv is None else argv))
            return int(args.run(args))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # the reader (`| head`) is gone
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _discard_output()
        raise UserError(f"cannot write the output ({error.strerror})") from error


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


def _prepare_streams() -> None:
    """Open closed streams (`>&-`) as /dev/null, and let no character that cannot be written end a command."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (stays open)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ε shows a question mark, not a traceback


def _discard_output() -> None:
    """Send what Python still flushes on exit to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(argv: list[str]) -> argparse.Namespace:
    # All arguments after `run` are for Snakemake: argparse would reorder them and drop a `--`.
    if argv[:1] == ["run"] and not {"-h", "--help"} & set(argv):
        args = parser().parse_args(["run"])
        args.arguments = argv[1:]
        return args
    return parser().parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
