"""Make text that others wrote safe for a terminal, a log, a page or a manifest.

Control characters can control a terminal. Line breaks can fake a line of a log. Direction marks show letters in
another order than they are stored.
"""

import re

# Character classes without their brackets, for regular expressions and JSON Schemas. FORGING: line breaks, other
# control characters and direction marks. STEERING: the same without white space.
FORGING = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
STEERING = r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069"
# Patterns of a whole text: one line, one line that is not blank, and any number of lines.
PRINTABLE = rf"^[^{FORGING}]*$"
KEYWORD = rf"^\s*[^\s{FORGING}][^{FORGING}]*$"
LINES = rf"^[^{STEERING}]*$"


def holds(text: str, characters: str) -> bool:
    """Say whether `text` holds one of `characters`, which is FORGING or STEERING."""
    return re.search(f"[{characters}]", text) is not None


def is_one_line(text: str, *, most: int) -> bool:
    """Say whether `text` has 1 to `most` characters, all of them visible."""
    return 1 <= len(text) <= most and text.isprintable()


def printable(text: str) -> str:
    """Return `text` with each invisible character as an escape such as `\\u202e`. Different names stay different."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def one_line(value: object, *, most: int = 300) -> str:
    """Return a value as one line of at most `most` characters, to quote it inside a message."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def visible(text: str) -> str:
    """Return `text` with U+FFFD for each invisible character except line breaks and tabs: for long answers."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else "\ufffd" for letter in text)


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"
