"""`python -m tests.golden`: record golden outputs, or compare with the recorded ones."""

import argparse
import json
import sys
from pathlib import Path

from tests.golden.differences import differences
from tests.golden.recording import record, written

GOLDEN = Path(__file__).parent / "golden.json"


def main() -> int:
    """Record or compare; return 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="run everything and write FILE")
    recorder.add_argument(
        "--configuration",
        action="store_true",
        help="record only schemas, rules and messages (after a new feature); keep the recorded results",
    )
    comparer = commands.add_parser("compare", help="run everything and compare with FILE")
    comparer.add_argument("--all", action="store_true", help="list every difference of an artifact")
    for command in (recorder, comparer):
        command.add_argument("file", nargs="?", type=Path, default=GOLDEN, help="by default the committed golden.json")
    args = parser.parse_args()
    if args.command == "record":
        kept = json.loads(args.file.read_text()) if args.configuration else {}
        args.file.write_text(written(kept | record(runs=not args.configuration)) + "\n")
        return 0
    before, after = json.loads(args.file.read_text()), record()
    if before["made with"] != after["made with"]:
        print("note: made with other versions, or on a processor that rounds otherwise; results may differ for it")
    lines = differences(before, after, **({"shown": sys.maxsize} if args.all else {}))
    print("\n".join(lines) if lines else "Nothing differs.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
