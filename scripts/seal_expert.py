"""Seal an expert's package also as an `.expert` file: the same manifest and members in a tar.gz."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.packages.publishing import seal_as_expert


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", required=True, type=Path, help="the .tgsp, signed with the current publisher key")
    parser.add_argument("--output", required=True, type=Path, help="the .expert file to write")
    args = parser.parse_args()
    digest = seal_as_expert(args.package, output=args.output)
    print(f"sealed {args.output}: {args.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    sys.exit(main())
