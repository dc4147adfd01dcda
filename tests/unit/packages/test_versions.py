"""Semantic versions and patterns, against semver.org's own examples and against Python's packaging library."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from sealed_experts.packages.content.versions import Version, VersionPattern
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.settings import VERSION_PATTERN as PATTERN
from sealed_experts.settings.texts import VERSION

# The versions of semver.org, section 11.4, in ascending order, and their neighbours.
ASCENDING = (
    *("0.0.0-0", "0.0.0", "0.0.1", "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta"),
    *("1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0-0", "2.0.0"),
    *("2.1.0", "2.1.1", "10.0.0"),
)
# From the list that goes with semver.org's regular expression (regex101.com/r/vkijKf).
VALID = (
    *("0.0.4", "1.1.2-prerelease+meta", "1.1.2+meta-valid", "1.0.0-alpha0.valid", "1.0.0-0A.is.legal", "1.0.0+0.build"),
    *("1.0.0-alpha-a.b-c-somethinglong+build.1-aef.1-its-okay", "2.0.0+build.1848", "1.0.0---RC-SNAPSHOT.12.9.1--.12"),
    *("1.0.0+0.build.1-rc.10000aaa-kk-0.1", "99999999999999999999999.999999999999999999.99999999999999999"),
)
INVALID = (
    *("1", "1.2", "1.2.3-0123", "1.2.3-0123.0123", "1.1.2+.123", "+invalid", "-invalid", "alpha", "1.0.0-alpha_beta"),
    *("1.0.0-alpha..", "01.1.1", "1.01.1", "1.1.01", "1.2.3.DEV", "1.2-SNAPSHOT", "1.2.31.2.3", "-1.0.3-gamma+b7718"),
    *("1.2.3----RC-SNAPSHOT.12.9.1--..12", "9.8.7+meta+meta", "", "1.0.0\n", "v1.0.0", " 1.0.0", "1.0.0-", "1.0.0+"),
    *("1٠.0.0", "1." + "1" * 300 + ".0"),
)
identifiers = st.from_regex(r"\A(0|[1-9][0-9]{0,3}|[0-9A-Za-z-]{0,3}[A-Za-z-][0-9A-Za-z-]{0,3})\Z")
numbers = st.integers(0, 30)
versions = st.builds(
    Version,
    *(numbers, numbers, numbers),
    pre_release=st.lists(identifiers, max_size=3).map(tuple),
    build=st.lists(identifiers, max_size=2).map(tuple),
)
plain = st.builds(Version, numbers, numbers, numbers)


def matches(pattern: str, version: object) -> bool:
    return VersionPattern.parse(f"x@{pattern}").matches("x", str(version))


def test_the_precedence_of_semver_org():
    for (low, smaller), (high, larger) in itertools.combinations(enumerate(map(Version.parse, ASCENDING)), 2):
        assert low < high
        assert smaller < larger
        assert larger > smaller
        assert smaller != larger
    assert Version.parse("1.0.0+a") == Version.parse("1.0.0+b") == Version.parse("1.0.0")


@pytest.mark.parametrize("text", [*VALID, *ASCENDING])
def test_a_version_is_read_and_written(text):
    assert str(Version.parse(text)) == text
    assert re.search(VERSION, text)


@pytest.mark.parametrize("text", INVALID)
def test_what_is_no_version_is_refused(text):
    with pytest.raises(PackageError, match="is not a version") as caught:
        Version.parse(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(PackageError, match="not a version"):
        VersionPattern.parse(f"x@{text}")


@given(versions)
def test_every_version_is_read_as_it_is_written(version):
    assert Version.parse(str(version)) == version
    assert (Version.parse(str(version)).build, str(Version.parse(str(version)))) == (version.build, str(version))


@given(versions, versions, versions)
def test_the_order_is_total_and_transitive(a, b, c):
    assert [a < b, a == b, a > b].count(True) == 1
    assert (a <= c) or not (a <= b <= c)


@given(versions, versions, st.sampled_from([">=", ">", "<=", "<", ""]))
def test_a_comparison_says_what_the_order_says(version, bound, operator):
    expected = {
        ">=": version >= bound,
        ">": version > bound,
        "<=": version <= bound,
        "<": version < bound,
        "": version == bound,
    }[operator]
    assert matches(f"{operator}{bound}", version) is expected
    assert matches("*", version)


@given(plain, plain, plain)
def test_ranges_of_plain_versions_agree_with_the_packaging_library(version, low, high):
    for condition in (f">={low}", f">{low}", f"<={high}", f"<{high}", f">={low},<{high}"):
        assert matches(condition, version) is SpecifierSet(condition).contains(str(version)), condition


@given(plain, st.integers(0, 30), numbers, numbers, st.integers(1, 3))
def test_a_caret_is_the_range_that_its_numbers_mean(version, major, minor, patch, given_numbers):
    """Compare with packaging's `==` and a prefix: the numbers up to the one that must stay the same."""
    numbers_given = [major, minor, patch][:given_numbers]
    first = next((place for place, number in enumerate(numbers_given) if number), given_numbers - 1)
    prefix = ".".join(map(str, numbers_given[: first + 1]))
    low = ".".join(map(str, numbers_given))
    same = f"=={prefix}.*" if first < 2 else f"=={prefix}"
    expected = SpecifierSet(f">={low},{same}").contains(str(version))
    assert matches(f"^{low}", version) is expected


@given(versions)
def test_a_caret_takes_no_pre_release_of_what_would_break(version):
    above = Version(version.major + 1, 0, 0, pre_release=version.pre_release or ("rc", "1"))
    assert not matches(f"^{version.major}", above)
    assert matches(f"^{version.major}", Version(version.major, 7, 7))


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("^1.2", "1.2.0 1.9.9 1.3.0-rc.1", "1.1.9 1.2.0-rc.1 2.0.0-0 2.0.0"),
        ("^1.2.3-rc.2", "1.2.3-rc.2 1.2.3 1.9.0", "1.2.3-rc.1 2.0.0"),
        ("^0.2", "0.2.0 0.2.9", "0.3.0-0 0.3.0 0.1.9 1.2.0"),
        ("^0.0.3", "0.0.3", "0.0.4 0.1.0"),
        ("^0.0", "0.0.0 0.0.9", "0.1.0"),
        ("^0", "0.0.0 0.9.9", "1.0.0-0 1.0.0"),
        (">=1.0.0,<2.0.0", "1.0.0 1.9.9", "0.9.9 2.0.0"),
    ],
)
def test_examples_of_ranges(pattern, inside, outside):
    assert all(matches(pattern, version) for version in inside.split())
    assert not any(matches(pattern, version) for version in outside.split())


@given(st.from_regex(PATTERN, fullmatch=True))
def test_every_text_of_the_patterns_form_is_read(text):
    if len(text) <= 200:
        pattern = VersionPattern.parse(text)
        assert text.startswith(f"{pattern.name}@")
        assert not pattern.matches(f"{pattern.name}x", "1.0.0")


@given(st.text(max_size=30))
def test_any_other_text_is_refused_with_one_line(text):
    if not re.fullmatch(PATTERN, text):
        with pytest.raises(PackageError, match="is not a version pattern") as caught:
            VersionPattern.parse(text)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["x", "x@", "@1.0.0", "X@*", "x@1.0", "x@>=1.0", "x@*,1.0.0", "x@>= 1.0.0", "x@=1.0.0", "x@~1.0.0", "x@*\n"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(PackageError, match="is not a version pattern"):
        VersionPattern.parse(text)
