"""Settings of an expert's package: what it says about itself, and how it is sealed."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sealed_experts.settings.fields import Distinct, Group, setting, text
from sealed_experts.settings.texts import NUMBER, PRE_RELEASE, VERSION_CORE, Printable
from sealed_experts.text import KEYWORD

NO_LICENCE = "NOASSERTION"  # SPDX's word for: no statement
LARGEST_LICENCE = 1 << 18  # bytes of the member LICENSE
MOST_RECIPIENTS = 50  # of an encrypted package
# `name@*`, or `name@` and conditions joined by commas; content/versions.py says what they mean.
_CONDITION = rf"(?:(?:>=|<=|>|<)?{VERSION_CORE}|\^{NUMBER}(?:\.{NUMBER}(?:\.{NUMBER}{PRE_RELEASE})?)?)"
VERSION_PATTERN = rf"^[a-z0-9][a-z0-9_-]{{0,99}}@(?:\*|{_CONDITION}(?:,{_CONDITION})*)$"
LICENCE = r"^[A-Za-z0-9(][A-Za-z0-9.+() -]*$"  # an SPDX expression; the names in it are checked later
CAPABILITY = r"^[a-z0-9]+([._-][a-z0-9]+)*$"
TIME = r"^[0-9]{4}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"

VersionPattern = Annotated[
    str,
    text(
        VERSION_PATTERN,
        'a version pattern such as "name@>=1.0.0", "name@^1.2" or "name@*"',
        min_length=1,
        max_length=200,
    ),
]
Licence = Annotated[str, text(LICENCE, 'an SPDX expression such as "Apache-2.0"', max_length=200)]
Capability = Annotated[str, text(CAPABILITY, "a word of lower-case letters, digits, `.`, `_` and `-`", max_length=64)]
Time = Annotated[str, text(TIME, 'a time in UTC such as "2026-01-31T09:00:00Z"')]
Keyword = Annotated[
    str,
    text(
        KEYWORD,
        "visible text without control characters or signs that turn its direction",
        max_length=200,
    ),
]


class RoutingSettings(Group):
    """Which questions an expert answers."""

    gate: Literal["step", "none"] = setting(
        "Type of the gate, for the engine that reads moe_config.json.", default="step"
    )
    keywords: Distinct[Keyword] = setting("Words and phrases that call this expert.", default=(), max_length=10_000)
    exclude: Distinct[Keyword] = setting(
        "Words and phrases that exclude this expert from a question, even if a keyword matches.",
        default=(),
        max_length=10_000,
    )
    priority: int = setting(
        "If equally many keywords of several experts match, the highest priority answers, then the first in order.",
        default=0,
        ge=-1000,
        le=1000,
    )
    always_active: bool = setting("The fallback when no keyword matches.", default=False)
    match: Literal["word", "substring"] = setting(
        "`word`: whole words and simple plurals; `substring`: anywhere in the text.", default="word"
    )


class ConstraintSettings(Group):
    """What the package requires of other packages that are installed or active together with it."""

    requires: Distinct[VersionPattern] = setting(
        "Packages that must be installed: `name@>=1.0.0`, `name@^1.2`, `name@1.2.3` or `name@*`.",
        default=(),
        max_length=100,
    )
    incompatible_with: Distinct[VersionPattern] = setting(
        "Packages that must not be installed, in the same form.",
        default=(),
        max_length=100,
    )
    load_order: int = setting(
        "Place among adapters that are active together: lower ones are loaded first.",
        default=0,
        ge=-1000,
        le=1000,
    )
    max_chain: int | None = setting(
        "Most adapters that may be active together, this one included; absent: any number.",
        default=None,
        ge=1,
        le=1000,
    )


class PackageSettings(Group):
    """What a package says about itself, and how it is sealed. Version and description are settings of the expert."""

    author: Printable = setting("Who made the expert.", default="")
    licence: Licence = setting(
        "Licence of the expert, as an SPDX expression (`Apache-2.0`, or `LicenseRef-…` for your own licence);"
        " `NOASSERTION`: none is stated.",
        default=NO_LICENCE,
    )
    licence_file: str | None = setting(
        "Text file that becomes the package's LICENSE; absent: LICENSE names the licence.", default=None, min_length=1
    )
    capabilities: Distinct[Capability] = setting(
        "What the expert can do, for programs that choose among packages.",
        default=("text-generation",),
        max_length=50,
    )
    tokenizer: bool = setting(
        "Whether the package includes the base's tokenizer, for programs that load it from the adapter's folder.",
        default=False,
    )
    constraints: ConstraintSettings = setting("What it requires of other packages.", default=ConstraintSettings())
    started: Time | None = setting(
        "When training started, such as `2026-01-31T09:00:00Z`; absent: SOURCE_DATE_EPOCH, or nothing is stated.",
        default=None,
    )
    finished: Time | None = setting(
        "When training ended, in the same form; absent: SOURCE_DATE_EPOCH, or nothing is stated.", default=None
    )
    signatures: Distinct[Literal["ed25519", "ml-dsa-65"]] = setting(
        "Algorithms that sign; an empty list: all that the publisher's key has. With `[ed25519]`, the same content and"
        " key always give the same bytes.",
        default=(),
    )
    containers: Distinct[Literal["tgsp", "expert"]] = setting(
        "Files to make: `tgsp`, from which the mixture is assembled, and `expert`, the same content as a tar.gz."
        " A change of the list makes no sealed `.tgsp` stale.",
        default=("tgsp",),
        operation=True,
    )
    compression: Literal["none", "zstd"] = setting("Compression of the payload.", default="none")
    recipients: Distinct[Annotated[str, Field(min_length=1)]] = setting(
        "Public key files of the recipients: only they can open the package. An empty list: everyone can.",
        default=(),
        max_length=MOST_RECIPIENTS,
    )

    revision: ClassVar[int] = 3  # raised when the meaning of a package changes
