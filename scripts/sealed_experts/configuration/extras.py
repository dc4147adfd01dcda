"""Print what pip must install for a configuration: one line of pip's arguments each. `make run` installs it.

These are the extras of pyproject.toml that its features need, and the package that holds its base, without that
package's own requirements. What is installed already is left out.

Usage: python -m sealed_experts.configuration.extras [FILE ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sealed_experts.configuration.named_features import named_features
from sealed_experts.configuration.resolution import load
from sealed_experts.errors import UserError
from sealed_experts.features import missing_extras
from sealed_experts.models.bases import missing_package

_DEFAULT = "config/config.yaml"  # the Snakefile's


def main(files: Sequence[str]) -> None:
    """Print the lines; print nothing if nothing is missing."""
    try:
        settings = load(files or [_DEFAULT], root=Path.cwd())
    except UserError:
        return  # the run reports every mistake of the configuration
    if extras := missing_extras(named_features(settings)):
        print(f"--editable .[{','.join(sorted(extras))}]")
    if package := missing_package(settings.base):
        print(f"--no-deps {package}")


if __name__ == "__main__":
    main(sys.argv[1:])
