# ruff: noqa: RUF009 (`setting` is dataclasses.field with a description)
"""Settings of an expert's package: what it says about itself beside what training left, and how it is sealed."""

import dataclasses

from sealed_experts.settings.fields import (
    CAPABILITY,
    LICENCE,
    TIME,
    VERSION_PATTERN,
    Group,
    setting,
)
from sealed_experts.text import PRINTABLE

NO_LICENCE = "NOASSERTION"  # SPDX's word for: nothing is said
LARGEST_LICENCE = 1 << 18  # bytes of the member LICENSE
MOST_RECIPIENTS = 50  # of an encrypted package
_PATTERNS = {"minLength": 1, "maxLength": 200, "pattern": VERSION_PATTERN}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstraintSettings(Group):
    """What the package needs of other packages that are installed, or active, beside it."""

    requires: tuple[str, ...] = setting(
        "Packages that must be installed: `name@>=1.0.0`, `name@^1.2`, `name@1.2.3` or `name@*`.",
        default=(),
        maxItems=100,
        uniqueItems=True,
        items=_PATTERNS,
    )
    incompatible_with: tuple[str, ...] = setting(
        "Packages that must not be installed, in the same form.",
        default=(),
        maxItems=100,
        uniqueItems=True,
        items=_PATTERNS,
    )
    load_order: int = setting(
        "Place among adapters that are active together: lower ones are loaded first.",
        default=0,
        minimum=-1000,
        maximum=1000,
    )
    max_chain: int | None = setting(
        "Most adapters that may be active together with it, itself included; absent, any number.",
        default=None,
        minimum=1,
        maximum=1000,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageSettings(Group):
    """What a package says about itself, and how it is sealed; its version and description stand beside it."""

    author: str = setting("Who made the expert.", default="", pattern=PRINTABLE, maxLength=200)
    licence: str = setting(
        "Licence of the expert, as an SPDX expression (`Apache-2.0`, or `LicenseRef-…` for one of your own);"
        " `NOASSERTION`: none is stated.",
        default=NO_LICENCE,
        pattern=LICENCE,
        maxLength=200,
    )
    licence_file: str | None = setting(
        "Text file that becomes the package's LICENSE; absent, LICENSE names the licence.", default=None, minLength=1
    )
    capabilities: tuple[str, ...] = setting(
        "What the expert can do, for programs that choose among packages.",
        default=("text-generation",),
        maxItems=50,
        uniqueItems=True,
        items={"pattern": CAPABILITY, "maxLength": 64},
    )
    tokenizer: bool = setting(
        "Whether the package holds the base's tokenizer too, for programs that load it from the adapter's folder.",
        default=False,
    )
    constraints: ConstraintSettings = setting("What it needs of others.", default_factory=ConstraintSettings)
    started: str | None = setting(
        "When training started, if that is to be stated: `2026-01-31T09:00:00Z`; absent, SOURCE_DATE_EPOCH or nothing.",
        default=None,
        pattern=TIME,
    )
    finished: str | None = setting(
        "When training ended, in the same form; absent, SOURCE_DATE_EPOCH, or nothing.", default=None, pattern=TIME
    )
    signatures: tuple[str, ...] = setting(
        "Algorithms that sign; none listed: all that the publisher's key has. With `[ed25519]`, the same content and"
        " key always give the same bytes.",
        default=(),
        uniqueItems=True,
        items={"enum": ["ed25519", "ml-dsa-65"]},
    )
    containers: tuple[str, ...] = setting(
        "Files that are made of it: `tgsp`, from which the mixture is assembled, and `expert`, the same content as a"
        " tar.gz. Another list makes no sealed `.tgsp` stale.",
        default=("tgsp",),
        operation=True,
        uniqueItems=True,
        items={"enum": ["tgsp", "expert"]},
    )
    compression: str = setting("Compression of the payload.", default="none", enum=["none", "zstd"])
    recipients: tuple[str, ...] = setting(
        "Files of the public keys of those who alone shall open the package; none listed: everybody can.",
        default=(),
        maxItems=MOST_RECIPIENTS,
        uniqueItems=True,
        items={"minLength": 1},
    )
