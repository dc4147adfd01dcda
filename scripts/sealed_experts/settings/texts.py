"""Types of text that settings of several rooms share."""

from typing import Annotated

from sealed_experts.settings.fields import text
from sealed_experts.text import LINES, PRINTABLE

# Names become parts of paths, and values of Snakemake's wildcards.
NAME = r"^[a-z0-9][a-z0-9_-]*$"
# Semantic Versioning 2.0.0, the regular expression of semver.org.
_NUMBER, _IDENTIFIER = r"(0|[1-9][0-9]*)", r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
PRE_RELEASE = rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
NUMBER = _NUMBER
VERSION_CORE = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{PRE_RELEASE}(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
VERSION = rf"^{VERSION_CORE}$"
COMMIT = r"^[0-9a-f]{40}$"  # of a hub repository: a branch or tag can move, a commit cannot
_UNFORGED = "text without control characters or signs that turn its direction"

Name = Annotated[
    str,
    text(NAME, "a name of lower-case letters, digits, `_` and `-` that begins with a letter or digit", max_length=64),
]
Printable = Annotated[str, text(PRINTABLE, _UNFORGED, max_length=200)]
Lines = Annotated[str, text(LINES, _UNFORGED, max_length=1000)]
Commit = Annotated[str, text(COMMIT, "a commit of 40 hexadecimal digits")]
Version = Annotated[str, text(VERSION, 'a version such as "1.0.0"', max_length=200)]
