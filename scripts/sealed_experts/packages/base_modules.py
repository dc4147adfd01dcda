"""Check that a package fits a base: by the base's digest, and by the shapes of the adapter's tensors.

The base's folder is read without torch: base.json, and the digests of its files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.models.adapters import Sizes
from sealed_experts.models.manifest import MANIFEST, verify_base
from sealed_experts.packages.content.linter import WEIGHTS
from sealed_experts.packages.content.manifest import adapter_of
from sealed_experts.packages.errors import IncompatibleError, PackageError
from sealed_experts.packages.report import PackageReport

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class BaseModules:
    """Facts about a base, to compare packages with.

    Attributes:
        digest: SHA-256 over the names and digests of the base's files.
        shapes: (outputs, inputs) of each linear module, by its name; None if only base.json was given.
    """

    digest: str
    shapes: Mapping[str, Sizes] | None = None


def read_base(path: Path) -> BaseModules:
    """Read a base's folder and check its files against its base.json. Or read only a base.json, for its digest.

    Raises:
        UserError: the base cannot be read, is not a base, or has other files than base.json lists.
    """
    try:
        if not path.is_dir():
            return BaseModules(digest=_digest(read_json(path), path))
        manifest = verify_base(path)
    except OSError as error:
        raise UserError(f"cannot read the base {path}: {error.strerror}") from error
    return BaseModules(digest=_digest(manifest, path / MANIFEST), shapes=_modules(manifest, path / MANIFEST))


def check_base(report: PackageReport, base: BaseModules | None, *, where: Path) -> None:
    """Check that a package was made for this base; `where` names the package in messages.

    Raises:
        IncompatibleError: it was made for another base.
    """
    stated, manifest = report.manifest["base"], report.manifest
    if base is not None and base.digest != stated["digest"]:
        raise IncompatibleError(
            f"{where}: {manifest['name']} {manifest['version']} belongs to the base {stated['name'][:100]!a} of digest"
            f" {stated['digest']}; the given base has {base.digest}: use a package that was made for it"
        )


def check_fits(report: PackageReport, base: BaseModules | None, *, where: Path) -> None:
    """Check that a verified package has exactly the tensors and shapes that its adapter needs on this base.

    Raises:
        IncompatibleError: the package was made for another base.
        PackageError: a tensor is missing, foreign, or has another shape.
    """
    check_base(report, base, where=where)
    if base is None or base.shapes is None:
        return
    expected, found = adapter_of(report.manifest).tensors_on(base.shapes), dict(report.shapes)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise PackageError(f"{where}: {WEIGHTS}: {name} is missing: the base has a targeted module of this name")
        if name not in expected:
            raise PackageError(f"{where}: {WEIGHTS}: {name} belongs to no module of the base")
        if found[name] != expected[name]:
            needed = list(expected[name])
            raise PackageError(f"{where}: {WEIGHTS}: {name} has the shape {list(found[name])}; the base needs {needed}")


def _digest(manifest: Any, path: Path) -> str:
    digest = manifest.get("digest") if isinstance(manifest, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise UserError(f"{path} states no digest: --base takes the base.json that `sealed-experts run` writes")
    return digest


def _modules(manifest: Mapping[str, Any], path: Path) -> dict[str, Sizes]:
    """Return (outputs, inputs) of a base's linear modules, by name."""
    stated = manifest.get("modules")
    if not isinstance(stated, Mapping) or not all(_are_sizes(sizes) for sizes in stated.values()):
        raise UserError(f"{path} does not state the base's modules: delete the base's folder, and make it again")
    return {name: (sizes[0], sizes[1]) for name, sizes in stated.items()}


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)
