"""Print the extras of pyproject.toml that a configuration needs and this environment lacks; `make run` installs them.

Usage: python -m sealed_experts.configuration.extras [FILE ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sealed_experts.configuration.named_features import named_features
from sealed_experts.configuration.resolution import load
from sealed_experts.errors import UserError
from sealed_experts.features import missing_extras

_DEFAULT = "config/config.yaml"  # the Snakefile's


def main(files: Sequence[str]) -> None:
    """Print the names, separated by commas; print nothing if nothing is missing."""
    try:
        settings = load(files or [_DEFAULT], root=Path.cwd())
    except UserError:
        return  # the run reports every mistake of the configuration
    print(",".join(sorted(missing_extras(named_features(settings)))))


if __name__ == "__main__":
    main(sys.argv[1:])
