"""Check that the experts of an assembled mixture, on one shared base, give the same answers as each expert alone."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import write_json
from sealed_experts.files.leases import device_lease
from sealed_experts.moe.composition import check_composition
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.training.environment import make_deterministic


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="moe_config.json")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--output", required=True, type=Path, help="composition.json to write")
    args = parser.parse_args()
    make_deterministic(threads=args.threads)
    with device_lease(args.device):
        content = check_composition(args.config, trust=load_trust(), device=args.device)
    for name, expert in content["experts"].items():
        if not expert["reached"]:
            print(
                f"warning: the router sends every question for {name} to other experts, so the check asked {name}"
                " without the router: give it another keyword (`routing.keywords`), or list it before them",
                file=sys.stderr,
            )
    write_json(args.output, content)
    print(f"checked {len(content['experts'])} experts on one base: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
