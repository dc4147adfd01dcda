"""Prepare one dataset: read its source, drop bad rows and duplicates, split it, and describe it."""

import argparse
import io
import sys
from pathlib import Path

from sealed_experts.data.job import dataset_from_json
from sealed_experts.data.preparation import prepare, write_prepared
from sealed_experts.data.statistics import token_counter
from sealed_experts.errors import reports_user_errors
from sealed_experts.files.planned_digests import unchanged


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--settings", required=True, help="the settings of the dataset, with its `name` and the `seed`, as JSON"
    )
    parser.add_argument("--digests", default="{}", help="digests of the user's files that it reads, as JSON")
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base; its tokenizer counts tokens")
    parser.add_argument("--parts", nargs="*", default=[], type=Path, help="folders of the datasets to combine")
    parser.add_argument("--train", required=True, type=Path, help="training records to write")
    parser.add_argument("--val", required=True, type=Path, help="validation records to write")
    parser.add_argument("--test", type=Path, help="test records to write, if the dataset has a test set")
    parser.add_argument("--stats", required=True, type=Path, help="statistics to write")
    args = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the log holds file names and text of the user
    job = dataset_from_json(args.settings)
    with unchanged(args.digests):
        prepared = prepare(job.dataset, name=job.name, seed=job.seed, parts=args.parts, log=print)
    statistics = write_prepared(
        prepared,
        train=args.train,
        val=args.val,
        test=args.test,
        stats=args.stats,
        count_tokens=token_counter(args.base.parent),
    )
    tested = f" and {statistics['test']['records']} test" if args.test else ""
    print(
        f"{job.name}: {statistics['train']['records']} training, {statistics['val']['records']} validation{tested} "
        f"records; duplicates dropped: {statistics['duplicates_dropped']}, bad rows: {statistics['bad_rows']['count']}"
    )


if __name__ == "__main__":
    sys.exit(main())
