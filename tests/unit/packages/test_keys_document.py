"""docs/keys.md against the code: its examples, tables and numbers."""

import re
from pathlib import Path

from sealed_experts.cli.main import parser
from sealed_experts.packages.keys import pkcs8
from sealed_experts.packages.keys.own_entry import RETIRED
from sealed_experts.packages.keys.policy import Policy
from sealed_experts.packages.keys.signing import ALGORITHMS
from sealed_experts.packages.keys.statements import revocation_statement, rotation_statement
from sealed_experts.packages.keys.trust_entry import entry_of
from tests.attacks import building

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)[1]


def test_the_table_of_algorithms_is_the_codes():
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| .*? \| (\d+) bytes \| (\d+) bytes \| (are the same|differ) \|", TEXT, flags=re.MULTILINE
    )
    assert rows == [
        (name, str(known.public_key_size), str(known.signature_size), "differ" if known.randomised else "are the same")
        for name, known in ALGORITHMS.items()
    ]


def test_the_fields_of_a_trusted_publisher():
    fields = re.findall(r"^\| `(\w+)` \|", section("Trust"), flags=re.MULTILINE)
    assert sorted(fields) == sorted(entry_of(building.key().public))


def test_the_fields_of_the_statements():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \| (.*?) \|$", section("Statements"), flags=re.MULTILINE)
    for column, statement in (
        (1, rotation_statement(old=building.key(1), new=building.key(2))),
        (2, revocation_statement(key=building.key(1), reason="lost")),
    ):
        stated = [name for row in rows if row[column] != "–" for name in re.findall(r"`(\w+)`", row[0])]
        assert sorted(stated) == sorted(statement)
        assert f"`{statement['format']}`" in section("Statements")


def test_the_example_of_a_policy_can_be_read(tmp_path):
    (tmp_path / "policy.yaml").write_text(re.search(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)[1])
    assert Policy.read(tmp_path / "policy.yaml") == Policy(
        signatures=("ed25519", "ml-dsa-65"), publishers=("bank",), experts=("bank*",), max_epsilon=8.0
    )


def test_the_commands_of_the_document_exist():
    lines = re.findall(r"^sealed-experts (keys .*?)(?:  +#.*)?$", section("In short"), flags=re.MULTILINE)
    assert len(lines) == 13
    for line in lines:
        words = [part.strip("'\"") for part in re.findall(r"\"[^\"]*\"|'[^']*'|\S+", line)]
        assert callable(parser().parse_args(words).run)


def test_the_document_says_how_the_key_before_a_rotation_is_revoked():
    """It once said only "revoke it", but the old key's name then meant the new key."""
    command = f"--name NAME{RETIRED}XXXXXXXX --reason"
    assert command in section("Rotating a key")
    assert f"--name publisher{RETIRED}01234567 --reason" in section("In short")


def test_the_cost_of_a_guess_is_the_codes():
    stated = re.search(r"scrypt \(N = 2\^(\d+), r = (\d+), p = (\d+)", TEXT).groups()
    assert stated == tuple(str(number) for number in (pkcs8.COST.bit_length() - 1, pkcs8.BLOCK_SIZE, pkcs8.PARALLEL))


def test_every_file_that_the_document_names_exists():
    last = section("Where this is implemented and tested")
    for place, name in re.findall(r"`(cli/)?(\w+\.py)`", last):
        rooms = "tests/unit" if place else "tests/unit/packages"
        folder = f"{rooms}/{place}" if name.startswith("test_") else "scripts/sealed_experts/packages/keys"
        assert (ROOT / folder / name).exists(), name
