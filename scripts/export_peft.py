"""Write the selected adapter as a PEFT folder: its weights as safetensors, and a canonical adapter_config.json."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import read_json
from sealed_experts.training.peft_folder import write_peft_folder


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--selection", required=True, type=Path, help="selection.json, which names the adapter")
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base model")
    parser.add_argument("--config", required=True, type=Path, help="adapter_config.json to write")
    parser.add_argument("--weights", required=True, type=Path, help="adapter_model.safetensors to write")
    args = parser.parse_args()
    adapter = Path(read_json(args.selection)["adapter"])
    write_peft_folder(adapter, base_folder=args.base.parent, config=args.config, weights=args.weights)


if __name__ == "__main__":
    sys.exit(main())
