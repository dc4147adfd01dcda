"""The tables of settings in docs/settings.md are the generated ones."""

from pathlib import Path

import pytest

from sealed_experts.configuration.reference import settings_tables, with_tables
from sealed_experts.data.sources import SOURCES
from sealed_experts.errors import UserError
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.moe.settings import GatelinkSettings, HeSettings
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.fields import Group, is_operational
from sealed_experts.training.objectives.sft import Sft

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_document_holds_the_generated_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python -m sealed_experts.configuration.reference docs/settings.md"


def test_every_setting_has_a_row() -> None:
    tables = settings_tables()
    prefixed = {
        "adapter.": Lora,
        "sft.": Sft,
        "privacy.": PrivacySettings,
        "routing.": RoutingSettings,
        "moe.he_config.": HeSettings,
        "moe.gatelink_config.": GatelinkSettings,
    }
    for prefix, group in prefixed.items():
        for name, field in group.model_fields.items():
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, Group)):
                row = next(line for line in tables.splitlines() if line.startswith(f"| `{prefix}{name}` |"))
                assert field.description is not None
                assert field.description in row
                assert row.endswith("| yes |" if is_operational(field) else "|  |")
    for source in SOURCES:
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
