"""Files of finished evaluations."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import atomic_writer
from sealed_experts.files.canonical import read_json

_KEYS = {"expert", "dataset", "records", "sampling", "reward", "metrics", "models", "gains", "checks", "samples"}


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """Return the content of an evaluation.json.

    Raises:
        UserError: the file is missing, or is not an evaluation.
    """
    content = read_json(path)
    if not isinstance(content, Mapping) or not content.keys() >= _KEYS:
        raise UserError(f"{path} is not an evaluation of this version: delete it and run `make run` again")
    return content


def evaluated_experts(results: Path) -> list[str]:
    """Return the names of the experts that have an evaluation under `results`, sorted."""
    return sorted(path.parent.name for path in (results / "experts").glob("*/evaluation.json"))


def evaluation_path(results: Path, expert: str) -> Path:
    """Return the path of an expert's evaluation."""
    return results / "experts" / expert / "evaluation.json"


def write_predictions(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a model's predictions as JSON Lines; atomic and durable."""
    with atomic_writer(path) as stream:
        for line in lines:
            stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
