"""The command line: `route`, `summary`, help, and how commands end."""

import json
import os
import re
import subprocess
import sys

import pytest

from sealed_experts import __version__
from sealed_experts.cli import main as cli
from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import write_json
from tests.conftest import ROOT
from tests.unit.moe.test_configuration import CONTENT, changed

HEAVY = ("torch", "transformers", "peft", "jsonschema", "rich", "numpy", "cryptography", "snakemake", "dp_accounting")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "results of mine" / "moe" / "moe_config.json"
    write_json(path, CONTENT)
    return path


def call(*arguments, **keywords):
    """Run the command in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "sealed_experts.cli.main", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
        **keywords,
    )


def ended(*arguments):
    """Return the code with which the command would end, run in this process."""
    try:
        return cli.main(list(arguments))
    except SystemExit as stop:
        return stop.code


def test_route_prints_the_decision(config, capsys):
    assert cli.main(["route", str(config), "two LOANS"]) == 0
    assert capsys.readouterr().out == "a (matched: loan)\n"
    assert cli.main(["route", str(config), "weather"]) == 0
    assert capsys.readouterr().out == "b (no keyword matched: the always-active expert answers)\n"


def test_route_json_holds_exactly_expert_and_matched(config, capsys):
    assert cli.main(["route", str(config), "two LOANS", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"expert": "a", "matched": ["loan"]}


def test_route_json_of_other_scripts_is_json_on_any_terminal(config):
    write_json(config, changed("experts", "a", "gate_keywords", to=["кредит"]))
    done = subprocess.run(
        [sys.executable, "-m", "sealed_experts.cli.main", "route", config, "Кредиты и КРЕДИТ", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"expert": "a", "matched": ["кредит"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["route", "{config}", "  "], "the question is empty"),
        (["route", "nowhere.json", "loan"], "nowhere.json does not exist"),
        (["summary", "nowhere.json"], "nowhere.json does not exist"),
        (["ask", "nowhere.json", "loan"], "nowhere.json does not exist"),
        (["ask", "{config}"], "there is no question"),
        (["ask", "{config}", " "], "the question is empty"),
    ],
)
def test_mistakes_are_one_plain_line(config, capsys, arguments, message):
    assert cli.main([argument.format(config=config) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_nobody_answering_is_an_error(config, capsys):
    write_json(config, changed("experts", "b", "always_active", to=False))
    assert cli.main(["route", str(config), "weather"]) == 1
    assert "no keyword of any expert matches" in capsys.readouterr().err


def test_nothing_heavy_is_imported(config):
    program = (
        "import sys; from sealed_experts.cli.main import main; code = main(sys.argv[1:]); "
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "route", config, "loan"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_says_what_each_command_does(capsys):
    assert ended("--help") == 0
    shown = capsys.readouterr().out
    for command in ("run", "watch", "summary", "route", "ask", "verify", "inspect", "unpack", "keys"):
        assert re.search(rf"^    {command} +\S", shown, re.MULTILINE), command
        assert ended(command, "--help") == 0
    assert "examples:" in shown


def test_version():
    assert call("--version").stdout == f"sealed-experts {__version__}\n"


def test_unknown_command_is_a_usage_error(capsys):
    assert ended("fly") == 2
    assert "fly" in capsys.readouterr().err


def test_closed_pipe_is_quiet(config):
    process = subprocess.Popen(
        [sys.executable, "-m", "sealed_experts.cli.main", "summary", config],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_interrupt_is_quiet(config, capsys, monkeypatch):
    def interrupted(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr("sealed_experts.cli.route.read_mixture", interrupted)
    assert cli.main(["route", str(config), "loan"]) == 130
    assert capsys.readouterr() == ("", "")


def test_summary_shows_experts_privacy_and_what_to_try(config, capsys, monkeypatch):
    stage = config.parent.parent / "experts" / "a" / "sft"
    write_json(stage / "training_metrics.json", {"first_val_loss": 3.21, "final_val_loss": 2.5, "privacy": {}})
    (config.parent.parent / "packages").mkdir()
    (config.parent.parent / "packages" / "a.tgsp").write_bytes(b"x" * 12_000)
    monkeypatch.chdir(config.parents[2])
    assert cli.main(["summary", str(config)]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"^a +sft +3\.50 +1e-5 +3\.210 \(base\) → 2\.500 \(sft\) +12 kB +results of mine/packages/a\.tgsp$",
        text,
        re.MULTILINE,
    )
    assert "ε = 3.50 at δ = 1e-5" in text
    assert "ask 'results of mine/moe/moe_config.json' 'What is a loan?'" in text


def test_summary_says_between_which_stages_a_loss_rose_and_which_the_budget_cut_short(config, capsys):
    write_json(config, changed("experts", "a", "checkpoint_path", to="../experts/a/rl/adapter_rl_final.pt"))
    content = json.loads(config.read_text())
    content["experts"]["a"]["stage"] = "reinforce"
    write_json(config, content)
    expert = config.parent.parent / "experts" / "a"
    cut = {"stage": "sft", "stopped_reason": "privacy_budget", "total_steps": 1}
    write_json(expert / "sft" / "training_metrics.json", cut)
    chain = {"stage_epsilon": {"sft": 2.0, "reinforce": 3.0}}
    losses = {"first_val_loss": 2.087, "final_val_loss": 2.199, "privacy": chain, "stopped_reason": "max_steps"}
    write_json(expert / "rl" / "rl_metrics.json", losses)
    assert cli.main(["summary", str(config)]) == 0
    text = capsys.readouterr().out
    assert "2.087 (sft) → 2.199 (reinforce)" in text
    assert "\na: sft ended early, after step 1: privacy budget spent\n" in text
    assert "a: reinforce ended" not in text


def test_summary_is_there_for_programs(config, capsys):
    assert cli.main(["summary", str(config), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [expert["name"] for expert in content["experts"]] == ["b", "a"]
    assert content["experts"][1]["epsilon"] == 3.5
    assert content["privacy"] == {"epsilon": 3.5, "delta": 1e-5, "reason": None}


def test_ctrl_c_in_a_job_is_one_line(capsys):
    @reports_user_errors
    def job():
        raise KeyboardInterrupt

    assert job() == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_summary_says_why_no_epsilon_is_claimed(config, capsys):
    content = changed("privacy", "epsilon", to=None)
    content["privacy"]["reason"] = "a was trained without it"
    write_json(config, content)
    assert cli.main(["summary", str(config)]) == 0
    assert "no ε is claimed (a was trained without it)" in capsys.readouterr().out


def test_summary_shows_each_expert_at_its_own_delta(config, capsys):
    write_json(config, changed("privacy", "experts", "a", "delta", to=2e-7))
    assert cli.main(["summary", str(config)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^a +sft +3\.50 +2e-7 ", text, re.MULTILINE)
    assert re.search(r"^b +sft +– +– ", text, re.MULTILINE)
    assert "ε = 3.50 at δ = 1e-5, all experts" in text


STEERING = "\x1b[2J\u202e"


@pytest.mark.parametrize(
    "path",
    [
        ("model",),
        ("experts", "a", "stage"),
        ("experts", "a", "tgsp_path"),
        ("experts", "a", "gate_keywords"),
        ("privacy", "reason"),
    ],
)
def test_nothing_of_the_unsigned_file_steers_the_terminal(config, capsys, path):
    content = changed("privacy", "epsilon", to=None)
    content["privacy"]["reason"] = "…"
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = [f"loan{STEERING}"] if path[-1] == "gate_keywords" else f"x{STEERING}"
    write_json(config, content)
    assert cli.main(["summary", str(config)]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    assert "\\u001b[2J\\u202e" in shown


@pytest.mark.parametrize("command", [["summary"], ["route", "loan"]])
def test_an_experts_name_that_steers_the_terminal_is_refused(config, capsys, command):
    """The name in the unsigned file was once printed unchanged."""
    content = changed("experts", "a", "stage", to="sft")
    content["experts"][f"a{STEERING}"] = content["experts"].pop("a")
    content["routing_order"] = [f"a{STEERING}", "b"]
    write_json(config, content)
    assert cli.main([command[0], str(config), *command[1:]]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.rstrip("\n").isprintable()
    assert "is not an expert's name" in captured.err


def test_route_shows_matched_keywords_without_steering_the_terminal(config, capsys):
    write_json(config, changed("experts", "a", "gate_keywords", to=["lo\u202ean"]))
    assert cli.main(["route", str(config), "two loans"]) == 0
    assert capsys.readouterr().out == "a (matched: lo\\u202ean)\n"


def test_summary_of_many_experts_stays_short(config, capsys):
    experts = {f"e{index:03d}": CONTENT["experts"]["b"] for index in range(300)}
    write_json(config, {**CONTENT, "experts": experts, "routing_order": list(experts)})
    assert cli.main(["summary", str(config)]) == 0
    text = capsys.readouterr().out
    assert "holds 300 experts" in text
    assert "… and 280 more" in text
    assert len(text.splitlines()) < 40
