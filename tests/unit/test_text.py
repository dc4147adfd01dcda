"""Text of others: what each cleaning function keeps, held against Unicode's own tables."""

import re
import sys
import unicodedata

import pytest

from sealed_experts.text import (
    FORGING,
    KEYWORD,
    LINES,
    PRINTABLE,
    STEERING,
    holds,
    is_one_line,
    one_line,
    printable,
    visible,
)

LETTERS = [chr(code) for code in range(sys.maxunicode + 1)]
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def forges(letter):
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(letter) in TURNING


def test_forging_letters_are_unicodes_controls_line_ends_and_direction_marks():
    assert [letter for letter in LETTERS if holds(letter, FORGING)] == [x for x in LETTERS if forges(x)]


def test_steering_letters_are_the_forging_ones_without_white_space():
    expected = [letter for letter in LETTERS if forges(letter) and not letter.isspace()]
    assert [letter for letter in LETTERS if holds(letter, STEERING)] == expected


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (PRINTABLE, ["", " ", "Bank & Söhne", "401(k)"], ["a\nb", "a\tb", "\x1b[2J", "a\u202eb"]),
        (KEYWORD, ["loan", " loan ", "équité"], ["", "  ", "a\nb", "\u2066"]),
        (LINES, ["", "a\nb", "a\tb\u2028c"], ["\x1b[2J", "a\u202eb", "\x7f"]),
    ],
)
def test_whole_texts_match_or_do_not(pattern, good, bad):
    assert [text for text in good + bad if re.search(pattern, text)] == good


@pytest.mark.parametrize("text", ["", "plain ε", "a\x1b[2J", "\u202eb\nc", "\U000e0001", "\\u202e"])
def test_printable_text_has_no_invisible_letter_and_loses_none(text):
    shown = printable(text)
    assert shown.isprintable()
    back = re.sub(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})", lambda found: chr(int(found[1] or found[2], 16)), shown)
    assert back == text or "\\u" in text


def test_one_line_is_short_and_printable():
    assert one_line("  a\n\tb\x1b c  ") == "a b c"
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 299 + "…"
    assert one_line(ValueError("a\nb"), most=2) == "a…"


def test_visible_text_keeps_its_lines():
    assert visible("a\x1b[2Jb\u202ec\nd\té") == "a\ufffd[2Jb\ufffdc\nd\té"


@pytest.mark.parametrize(
    ("text", "verdict"), [("", False), ("x", True), ("x" * 5, True), ("x" * 6, False), ("a\nb", False)]
)
def test_one_line_has_a_length_and_no_control_character(text, verdict):
    assert is_one_line(text, most=5) is verdict
