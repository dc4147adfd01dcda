"""`sealed-experts ask`: one answer, JSON, and the chat."""

import io
import json
import os

import pytest

from sealed_experts.cli import main as cli
from sealed_experts.errors import UserError
from sealed_experts.moe.engine import Answer, Engine
from sealed_experts.packages.recipients.encryption import generate_identity
from sealed_experts.packages.recipients.recipient_files import save_identity


class Echo:
    """An engine that answers with what it was asked."""

    def __init__(self):
        self.options = []

    def answer(self, question, **options):
        self.options.append(options)
        if question == "too long":
            raise UserError("ask a shorter one")
        return Answer(expert="banking", matched=("loan",), text=f"You said {question}.")


@pytest.fixture
def engine(monkeypatch):
    made = Echo()

    def load(config, *, trust, policy, identity, device):
        made.identity = identity
        return made

    monkeypatch.setattr(Engine, "load", load)
    return made


def test_answer_names_its_expert(engine, capsys):
    assert cli.main(["ask", "moe_config.json", "loan", "--max-new-tokens", "7", "--temperature", "0.5"]) == 0
    assert capsys.readouterr().out == "banking (matched: loan):\nYou said loan.\n\n"
    assert engine.options == [{"max_new_tokens": 7, "temperature": 0.5, "seed": 0}]


def test_json_adds_the_answer(engine, capsys):
    assert cli.main(["ask", "moe_config.json", "loan", "--json"]) == 0
    expected = {"expert": "banking", "matched": ["loan"], "answer": "You said loan."}
    assert json.loads(capsys.readouterr().out) == expected


def test_control_characters_do_not_reach_the_terminal(engine, capsys):
    assert cli.main(["ask", "moe_config.json", "\x1b[2Jloan\nnext"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "loan\nnext" in out


def test_nothing_in_an_answer_turns_the_reading_direction_and_joined_letters_stay_joined(engine, capsys):
    assert cli.main(["ask", "moe_config.json", "a\u202eb\u2028c\u200dd"]) == 0
    assert "a\ufffdb\ufffdc\u200dd" in capsys.readouterr().out


def test_chat_goes_on_after_a_refused_question(engine, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("first\ntoo long\nsecond\n\nnever\n"))
    assert cli.main(["ask", "moe_config.json", "zeroth", "--interactive", "--json"]) == 0
    captured = capsys.readouterr()
    answers = [json.loads(line)["answer"] for line in captured.out.splitlines()]
    assert answers == ["You said zeroth.", "You said first.", "You said second."]
    assert captured.err == "error: ask a shorter one\n"


def test_chat_ends_with_its_input(engine, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("only"))
    assert cli.main(["ask", "moe_config.json", "--interactive"]) == 0
    assert "You said only." in capsys.readouterr().out


def test_ask_takes_the_key_of_an_encrypted_package(engine, tmp_path, monkeypatch):
    """`ask` once accepted only the variable, not --identity as the other commands do."""
    anna, ben = generate_identity(), generate_identity()
    save_identity(tmp_path / "anna.pem", anna)
    save_identity(tmp_path / "ben.pem", ben)
    assert cli.main(["ask", "moe_config.json", "loan"]) == 0
    assert engine.identity is None
    monkeypatch.setenv("SEALED_EXPERTS_IDENTITY", str(tmp_path / "ben.pem"))
    assert cli.main(["ask", "moe_config.json", "loan"]) == 0
    assert engine.identity == ben
    assert cli.main(["ask", "moe_config.json", "loan", "--identity", str(tmp_path / "anna.pem")]) == 0
    assert engine.identity == anna
    assert os.environ["SEALED_EXPERTS_IDENTITY"] == str(tmp_path / "ben.pem")
