"""The results of a run as values, so that a person can read the differences."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.golden.workplace import Workplace

# Values that differ between runs or machines.
_MEASURED = {"environment", "seconds", "tokens_per_second", "total_time_seconds"}
_DIGEST_ONLY = ("train.jsonl", "val.jsonl", "tokenizer.json")
_LEFT_OUT = ("checkpoints", "logs", "benchmarks")
_LEFT_OUT_FILES = ("*.log", "*.tsv", "state.json", ".lock", ".gitkeep", ".snakemake_timestamp")


def artifacts_of(workplace: Workplace) -> dict[str, Any]:
    """Return {path: content} of everything in results/ except checkpoints, logs and times."""
    results = workplace.tree / "results"
    paths = [path for path in sorted(results.rglob("*")) if path.is_file() and not _is_left_out(path, results)]
    return {str(path.relative_to(results)): _content(path, workplace) for path in paths}


def plain(value: Any) -> Any:
    """Return a value as JSON data: tensors become a line of text, and measured times are left out."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if key not in _MEASURED}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else _tensor(value)


def _tensor(tensor: Any) -> str:
    """Describe a tensor: dtype, shape and digest of its bytes."""
    import torch

    content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {_digest(content)}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_left_out(path: Path, results: Path) -> bool:
    parts = path.relative_to(results).parts
    return not set(parts[:-1]).isdisjoint(_LEFT_OUT) or any(path.match(pattern) for pattern in _LEFT_OUT_FILES)


def _content(path: Path, workplace: Workplace) -> Any:
    if path.suffix in (".tgsp", ".expert"):
        return _package(path, workplace)
    if path.name in _DIGEST_ONLY:
        return _digest(path.read_bytes())
    return _READERS.get(path.suffix, lambda path: _digest(path.read_bytes()))(path)


def _adapter(path: Path) -> Any:
    import torch

    state = torch.load(path, weights_only=True)
    del state["digest"]  # a digest of the whole state, with measured times
    return plain(state)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {"sha256": _digest(path.read_bytes()), "tensors": plain(load_file(path))}


def _package(path: Path, workplace: Workplace) -> dict[str, Any]:
    """Return a package's digest and the output of `verify`; for a .tgsp file also its content."""
    verified = {**_told(workplace, "verify", path), "path": path.name}
    found = {"sha256": _digest(path.read_bytes()), "verify": verified}
    if path.suffix != ".tgsp":
        return found
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "members"
        workplace.tool("unpack", str(path), str(unpacked))
        members = {member.name: _content(member, workplace) for member in sorted(unpacked.iterdir())}
    return {**found, "manifest": _told(workplace, "inspect", path)["manifest"], "members": members}


def _told(workplace: Workplace, command: str, path: Path) -> dict[str, Any]:
    return json.loads(workplace.tool(command, str(path), "--json").stdout)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _json(path: Path) -> Any:
    return plain(json.loads(path.read_text()))


def _json_lines(path: Path) -> list[Any]:
    return [plain(json.loads(line)) for line in _lines(path)]


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": _adapter,
    ".safetensors": _safetensors,
    ".json": _json,
    ".jsonl": _json_lines,
    ".md": _lines,
}
