"""The README's tables of settings are the generated ones."""

from pathlib import Path

import pytest

from sealed_experts.errors import UserError
from sealed_experts.settings.fields import as_group, declared
from sealed_experts.settings.reference import settings_tables, with_tables
from sealed_experts.settings.types import (
    DATASET_SOURCES,
    AdapterSettings,
    GatelinkSettings,
    HeSettings,
    PrivacySettings,
    RoutingSettings,
    SftSettings,
)

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_holds_the_generated_tables() -> None:
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    if "<!-- settings -->" not in text:
        pytest.skip("README.md has no `<!-- settings -->` markers yet")
    assert with_tables(text) == text, "run: python -m sealed_experts.settings.reference README.md"


def test_every_setting_has_a_row() -> None:
    tables = settings_tables()
    prefixed = {
        "adapter.": AdapterSettings,
        "sft.": SftSettings,
        "privacy.": PrivacySettings,
        "routing.": RoutingSettings,
        "moe.he_config.": HeSettings,
        "moe.gatelink_config.": GatelinkSettings,
    }
    for prefix, group in prefixed.items():
        for name, (field, annotation) in declared(group).items():
            if as_group(annotation) is None:
                row = next(line for line in tables.splitlines() if line.startswith(f"| `{prefix}{name}` |"))
                assert field.metadata["description"] in row
                assert row.endswith("| yes |" if field.metadata["operation"] else "|  |")
    for source in DATASET_SOURCES:
        assert f"### Dataset of source `{source}`" in tables


def test_rows_have_as_many_cells_as_the_head() -> None:
    for line in settings_tables().splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 6, line


def test_bounds_and_defaults_are_shown() -> None:
    tables = settings_tables()
    assert "| `sft.max_steps` | `2000` | a whole number from 1 to 10000000 |" in tables
    assert "| `privacy.noise_multiplier` | `1.0` | a number from 0.001 to 1000000.0 or `auto` |" in tables
    assert "| `max_bad_share` | `0.01` | a number from 0 to 1 |" in tables
    assert "| `privacy.enabled` | `true` | `true` or `false` |" in tables


def test_only_what_stands_between_the_markers_is_written() -> None:
    text = "before\n<!-- settings -->\nold\n<!-- settings -->\nafter\n"
    written = with_tables(text)
    assert written == f"before\n<!-- settings -->\n\n{settings_tables()}\n<!-- settings -->\nafter\n"
    assert with_tables(written) == written
    with pytest.raises(UserError, match="no two"):
        with_tables("no markers")
