"""Find settings that a package cannot hold before the training starts, because sealing comes last."""

import importlib.util
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from sealed_experts.packages.settings import LARGEST_LICENCE, NO_LICENCE, PackageSettings, RoutingSettings
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import KeyPath, Mistake, shown
from sealed_experts.text import STEERING, holds

# The model card (at most 256 KiB) and the manifest list all keywords. The rest of the space is for everything else.
KEYWORD_BYTES = 200_000
_ESCAPED = 4  # most bytes that the card adds to escape a character such as & or <
# A package's long name `{name}-{base}.v{version}` has at most 200 letters; the base's name takes up to 80 of them.
LONGEST_NAME_AND_VERSION = 200 - 80 - len("-.v")
PRIVATE_KEY = re.compile(r"BEGIN [A-Z0-9 ]*PRIVATE KEY")  # in PEM, OpenSSH's form and PGP's


def package_mistakes(
    name: str, version: str, routing: RoutingSettings, package: PackageSettings, layers: Layers, *, root: Path
) -> Iterator[Mistake]:
    """Yield the mistakes in an expert's keywords, licence, constraints, times, containers and signatures.

    Args:
        name: the expert's name.
        root: folder that relative paths start from.
    """
    yield from _keyword_mistakes(name, routing, package)
    yield from _licence_mistakes(package, layers, root)
    yield from _constraint_mistakes(name, package, layers)
    yield from _time_mistakes(package, layers)
    if len(name) + len(version) > LONGEST_NAME_AND_VERSION:
        yield Mistake(
            ("experts", name, "version"),
            f"with the expert's name it has {len(name) + len(version)} letters; a package's file name has"
            f" room for {LONGEST_NAME_AND_VERSION}",
        )
    if package.compression == "zstd" and not has_zstandard():
        yield Mistake(layers.locate("package", "compression"), "`zstd` needs the package backports.zstd: install it")
    for place, path in enumerate(package.recipients):
        if not os.path.isfile(root / path):
            here = (*layers.locate("package", "recipients"), place)
            yield Mistake(here, f"{shown(path)} is not an existing file; give the file of a recipient's public key")
    yield from _container_mistakes(package, layers)
    if package.signatures and "ed25519" not in package.signatures:
        yield Mistake(
            layers.locate("package", "signatures"),
            "`ed25519` is missing: a publisher is known by that key; add it, or list nothing for all algorithms",
        )


def _container_mistakes(package: PackageSettings, layers: Layers) -> Iterator[Mistake]:
    here = layers.locate("package", "containers")
    if "tgsp" not in package.containers:
        yield Mistake(here, "`tgsp` is missing: the mixture is assembled from it; add it")
    if "expert" in package.containers and package.recipients:
        yield Mistake(
            here,
            "an `expert` file is never encrypted, so everybody could open it; remove `expert`, or the recipients",
            involves=(layers.locate("package", "recipients"),),
        )


def has_zstandard() -> bool:
    """Say whether this Python can compress with Zstandard."""
    if sys.version_info >= (3, 14):
        return True
    return importlib.util.find_spec("backports") is not None and importlib.util.find_spec("backports.zstd") is not None


def _keyword_mistakes(name: str, routing: RoutingSettings, package: PackageSettings) -> Iterator[Mistake]:
    """Yield keywords that the router could never find, that contradict each other, or that are too many."""
    called = {_folded(keyword) for keyword in routing.keywords}
    for key, words in (("keywords", routing.keywords), ("exclude", routing.exclude)):
        for place, word in enumerate(words):
            here: KeyPath = ("experts", name, "routing", key, place)
            if all(char.isspace() or unicodedata.category(char) == "Cf" for char in word):
                yield Mistake(here, f"{shown(word)} holds no visible character; remove it or write a word")
            elif key == "exclude" and _folded(word) in called:
                yield Mistake(here, f"{shown(word)} is one of this expert's keywords too; it cannot call and keep out")
    here = ("experts", name, "routing", "keywords")
    constraints = package.constraints
    size = sum(_bytes_in_card(word) for word in (*routing.keywords, *routing.exclude))
    size += sum(len(pattern) + len("``, ") for pattern in (*constraints.requires, *constraints.incompatible_with))
    if size > KEYWORD_BYTES:
        yield Mistake(
            here,
            f"together with excluded words and constraints they take {size} bytes; a package holds at most"
            f" {KEYWORD_BYTES}: keep those that matter",
        )


def _folded(word: str) -> str:
    return " ".join(word.casefold().split())


def _licence_mistakes(package: PackageSettings, layers: Layers, root: Path) -> Iterator[Mistake]:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    name, file = layers.locate("package", "licence"), layers.locate("package", "licence_file")
    if package.licence != NO_LICENCE:
        try:
            canonical = canonicalize_license_expression(package.licence)
        except InvalidLicenseExpression:
            yield Mistake(
                name,
                f"{shown(package.licence)} is no SPDX expression; see https://spdx.org/licenses, or call a licence of"
                " your own `LicenseRef-` and a name, and give its text as licence_file",
            )
            return
        if canonical != package.licence:
            yield Mistake(name, f"{shown(package.licence)} is written `{canonical}`")
    if package.licence_file is None:
        if "LicenseRef-" in package.licence:
            yield Mistake(name, f"only its text can say what {shown(package.licence)} is; give it as licence_file")
        return
    if package.licence == NO_LICENCE:
        yield Mistake(file, "which licence that is must be said too: give `licence`, such as Apache-2.0")
    yield from _text_mistakes(package.licence_file, file, root)


def _text_mistakes(path: str, place: KeyPath, root: Path) -> Iterator[Mistake]:
    try:
        content = (root / path).read_bytes()
        text = content.decode("utf-8")
    except (OSError, ValueError):  # ValueError: a name that no file can have
        yield Mistake(place, f"{shown(path)} is not an existing file of UTF-8 text")
        return
    if not text.strip() or len(content) > LARGEST_LICENCE or holds(text, STEERING):
        yield Mistake(
            place, f"{shown(path)} must hold text, at most {LARGEST_LICENCE} bytes of it, and no control characters"
        )
    if PRIVATE_KEY.search(text):
        yield Mistake(place, f"{shown(path)} holds a private key, which everybody would get; give the licence's text")


def _constraint_mistakes(name: str, package: PackageSettings, layers: Layers) -> Iterator[Mistake]:
    constraints = package.constraints
    for key in ("requires", "incompatible_with"):
        place = layers.locate("package", "constraints", key)
        for index, pattern in enumerate(getattr(constraints, key)):
            if pattern.partition("@")[0] == name:
                yield Mistake((*place, index), f"{shown(pattern)} speaks of the expert itself; name another one")
            elif key == "requires" and pattern in constraints.incompatible_with:
                yield Mistake((*place, index), f"{shown(pattern)} is in incompatible_with too; remove one of them")


def _time_mistakes(package: PackageSettings, layers: Layers) -> Iterator[Mistake]:
    found = {}
    for key in ("started", "finished"):
        text = getattr(package, key)
        if text is not None:
            try:
                found[key] = datetime.fromisoformat(text)
            except ValueError:
                yield Mistake(layers.locate("package", key), f"{shown(text)} is no day of the calendar")
    if len(found) == 2 and found["started"] > found["finished"]:
        yield Mistake(
            layers.locate("package", "finished"),
            f"{shown(package.finished)} is before `started`, which is {shown(package.started)}",
            involves=(layers.locate("package", "started"),),
        )


def _bytes_in_card(keyword: str) -> int:
    special = sum(not (char.isalnum() or char.isspace()) for char in keyword)
    return len(keyword.encode(errors="replace")) + _ESCAPED * special + len(", ")
