"""base.json: the digests of a base folder's files, so that no changed base is used for training or answers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.files.digests import digest_of_files, sha256_file
from sealed_experts.files.safetensors_header import PREFIX, Tensor, header_length, parse_header

MANIFEST = "base.json"
REBUILD = "delete the folder and run the same command again, to make the base again"


def write_base_manifest(
    folder: str | Path,
    *,
    name: str,
    revision: str | None,
    key: str,
    modules: Mapping[str, Sequence[int]],
    dtype: str = "auto",
) -> dict[str, Any]:
    """Write `folder`/base.json about every file of a complete base folder, and return it.

    The digest covers only the files' names and contents. `parameters` counts the numbers stored in the .safetensors
    files, so tied weights count once.

    Args:
        modules: [outputs, inputs] of the model's linear modules, by name.

    Raises:
        UserError: config.json is missing or not JSON, or a weight file is not safetensors.
    """
    folder = Path(folder)
    files = _digests(folder)
    manifest = {
        "name": name,
        "revision": revision,
        "key": key,
        "model_type": read_json(folder / "config.json").get("model_type"),
        "dtype": dtype,
        "modules": {name: list(sizes) for name, sizes in modules.items()},
        "parameters": sum(tensor.elements for tensor in weights_of(folder)),
        "files": files,
        "digest": digest_of_files(files),
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify_base(folder: str | Path) -> dict[str, Any]:
    """Compare the files of a base folder with its base.json, in both directions, and return the manifest.

    Raises:
        UserError: base.json is missing or broken, or a file was changed, removed or added; the message names them.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UserError(f"{path} is not a base's manifest: {REBUILD}")
    listed, found = manifest["files"], _digests(folder)
    if manifest.get("digest") != digest_of_files(listed):
        raise UserError(f"{path} was changed: its `digest` does not belong to its `files`; {REBUILD}")
    problems = {
        "changed": sorted(name for name in listed.keys() & found.keys() if listed[name] != found[name]),
        "missing": sorted(listed.keys() - found.keys()),
        "not listed in base.json": sorted(found.keys() - listed.keys()),
    }
    named = [f"{', '.join(names)} ({problem})" for problem, names in problems.items() if names]
    if named:
        raise UserError(f"the base in {folder} is not the one its base.json describes: {'; '.join(named)}; {REBUILD}")
    return manifest


def weights_of(folder: Path) -> Iterator[Tensor]:
    """Yield the tensors in a base folder's .safetensors files, read from their headers.

    Raises:
        UserError: a file is not safetensors.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        try:
            with open(path, "rb") as stream:
                length = header_length(stream.read(PREFIX), size=size)
                yield from parse_header(stream.read(length), data_size=size - PREFIX - length)
        except ValueError as error:
            raise UserError(f"{path} is not a safetensors file ({error}): fetch the base again") from error


def _digests(folder: Path) -> dict[str, str]:
    """Return {relative path: SHA-256} of a folder's files, without hidden files: these are never model files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    visible = {name: path for name, path in names.items() if not any(part.startswith(".") for part in name.split("/"))}
    return {name: sha256_file(path) for name, path in sorted(visible.items()) if name != MANIFEST}
