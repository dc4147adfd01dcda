"""stats.json says what a unit is, and which records it describes; nothing is read without that."""

from pathlib import Path

import pytest

from sealed_experts.data.statistics import histogram, read_statistics
from sealed_experts.errors import UserError


@pytest.mark.parametrize("text", ["[]", "{}", '{"unit": "record"}', '{"unit": 1, "digest": "0"}', '{"unit": "record"'])
def test_statistics_without_unit_or_digest_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stats.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"stats\.json"):
        read_statistics(path)


def test_statistics_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text('{"unit": "customer", "digest": "0", "rows": 3}')
    assert read_statistics(path) == {"unit": "customer", "digest": "0", "rows": 3}


def test_the_histogram_counts_every_value_once_below_the_next_power_of_two() -> None:
    values = [0, 1, 2, 3, 4, 5, 8, 9, 16, 1000]
    found = histogram(values)
    assert found == {"1": 2, "2": 1, "4": 2, "8": 2, "16": 2, "1024": 1}
    assert sum(found.values()) == len(values)
