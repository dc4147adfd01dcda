"""Assemble verified packages into moe_config.json. Read the settings from standard input, as canonical JSON."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.home import home_folder
from sealed_experts.moe.assembly import Sources, assemble
from sealed_experts.moe.job import moe_from_json
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.privacy.ledger.releases import ReleaseLog


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", required=True, type=Path, help="folder of the packages, {expert}.tgsp")
    parser.add_argument("--experts", required=True, type=Path, help="folder that holds {expert}/selection.json")
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base that all experts adapt")
    parser.add_argument("--output", required=True, type=Path, help="moe_config.json to write")
    args = parser.parse_args()
    job = moe_from_json(sys.stdin.read())
    sources = Sources(packages=args.packages, experts=args.experts, base=args.base)
    assemble(job, sources=sources, output=args.output, trust=load_trust(), log=ReleaseLog(home_folder()))
    print(f"assembled {len(job.experts)} experts into {args.output}")


if __name__ == "__main__":
    sys.exit(main())
