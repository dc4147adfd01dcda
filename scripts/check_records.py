"""Check the records of all stages of an expert before the first one trains, so that no ε is spent in vain."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import write_json
from sealed_experts.models.loading import load_tokenizer
from sealed_experts.training.stage_data import check_records


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base model")
    parser.add_argument(
        "--stage",
        nargs=4,
        action="append",
        required=True,
        metavar=("SETTINGS", "TRAIN", "VAL", "STATS"),
        help="a stage's settings as JSON, its training and validation records, and stats.json of the training records",
    )
    parser.add_argument("--output", required=True, type=Path, help="how many records each stage uses, cuts and drops")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.base.parent)
    lengths = {}
    for settings, *files in args.stage:
        train, val, stats = map(Path, files)
        stage, found = check_records(settings, train=train, val=val, stats=stats, base=args.base, tokenizer=tokenizer)
        lengths[stage] = found
        for side, counts in found.items():
            print(f"{stage}: {side}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    write_json(args.output, lengths)


if __name__ == "__main__":
    sys.exit(main())
