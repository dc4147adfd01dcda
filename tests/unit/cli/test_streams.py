"""Closed or full streams, bytes that are not text, and options outside a model's limits."""

import errno
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.cli import main as cli
from sealed_experts.cli.run import config_files
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import write_json
from sealed_experts.moe.engine import Engine
from sealed_experts.packages.keys.trust import load_trust
from tests.conftest import ROOT
from tests.mixtures import Workshop
from tests.unit.cli.test_ask import Echo
from tests.unit.moe.test_configuration import CONTENT


@pytest.fixture
def config(tmp_path):
    write_json(tmp_path / "moe_config.json", CONTENT)
    return tmp_path / "moe_config.json"


@pytest.fixture
def engine(monkeypatch):
    made = Echo()
    monkeypatch.setattr(Engine, "load", lambda config, *, trust, policy, identity, device: made)
    return made


def shell(command, **environment):
    return subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m sealed_experts.cli.main {command}"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(config, streams):
    done = shell(f"route {config} loan {streams}")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_error_with_a_closed_output_still_has_its_code(config):
    done = shell("route nowhere.json loan >&-")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: nowhere.json does not exist")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", ["route {config} loan", "summary {config}"])
def test_a_full_disk_behind_the_output_is_told_without_a_traceback(config, arguments):
    done = shell(f"{arguments.format(config=config)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["error: cannot write the output (No space left on device)"]


def test_another_error_of_the_system_keeps_its_traceback(config, monkeypatch):
    def fail(_path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("sealed_experts.cli.route.read_mixture", fail)
    with pytest.raises(OSError, match="Too many"):
        cli.main(["route", str(config), "loan"])


def test_a_chat_without_an_input_ends(config, engine, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["ask", str(config), "loan", "--interactive"]) == 0
    assert "You said loan." in capsys.readouterr().out


def test_a_byte_that_is_no_text_ends_no_chat(config, engine, monkeypatch, capsys):
    lines = io.TextIOWrapper(io.BytesIO(b"caff\xff\nsecond\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdin", lines)
    assert cli.main(["ask", str(config), "--interactive", "--json"]) == 0
    answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["You said caff\ufffd.", "You said second."]


def test_a_byte_that_is_no_text_in_the_question_reaches_no_tokenizer(config, engine, capsys):
    assert cli.main(["ask", str(config), os.fsdecode(b"caff\xff loan")]) == 0
    assert "You said caff\ufffd loan." in capsys.readouterr().out


@pytest.fixture(scope="module")
def experts(tiny_base, tmp_path_factory):
    os.environ.setdefault("SEALED_EXPERTS_HOME", str(tmp_path_factory.mktemp("home")))
    workshop = Workshop(tmp_path_factory.mktemp("mixture"), tiny_base)
    workshop.make_data()
    names = ("banking_expert",)
    workshop.make_expert(names[0])
    workshop.assemble(workshop.run(names=names))
    return Engine.load(workshop.config, trust=load_trust(), device="cpu")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 10**23}, "seed is 1000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9"),
        ({"temperature": 1e-300}, "temperature is 1e-300"),
        ({"temperature": 1e-5}, "temperature is 1e-05"),
        ({"temperature": 1e300}, r"temperature is 1e\+300"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_options_that_no_sampler_takes_are_told(experts, options, told):
    with pytest.raises(UserError, match=told):
        experts.answer("What is a bank?", max_new_tokens=3, **{"temperature": 0.5, **options})


@pytest.mark.parametrize("options", [{"temperature": 1e-3}, {"temperature": 100.0}, {"seed": 2**63 - 1}])
def test_the_ends_of_the_options_work(experts, options):
    assert experts.answer("What is a bank?", max_new_tokens=3, **{"temperature": 0.5, **options}).text is not None


# The arguments that Snakemake would get (20).


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ([], ["config/config.yaml"]),
        (["--configfile", "a.yaml", "b.yaml", "--", "moe"], ["a.yaml", "b.yaml"]),
        (["-n", "--configfiles", "a.yaml", "--cores", "2"], ["a.yaml"]),
        (["--configfile=a.yaml", "-n"], ["a.yaml"]),
        (["--configfile", "a.yaml", "--configfile", "b.yaml"], ["b.yaml"]),
        (["--config", "seed=3"], ["config/config.yaml"]),
        (["--", "--configfile", "a.yaml"], ["config/config.yaml"]),
    ],
)
def test_the_configuration_files_of_a_command_line_are_found(arguments, files):
    assert config_files(arguments) == [Path(name) for name in files]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: b: c", "my.yaml, line 1: this is not YAML"),
        ("# é".encode("latin-1"), "my.yaml is not UTF-8"),
        ("seed: 7".encode("utf-16"), "my.yaml is not UTF-8"),
        (b"# nothing yet\n", "my.yaml is empty"),
        (b"", "my.yaml is empty"),
        (b"[1, 2]", "my.yaml: a configuration is a mapping"),
        (None, "cannot read the configuration my.yaml: No such file"),
    ],
    ids=["syntax", "latin-1", "utf-16", "comment", "empty", "list", "missing"],
)
def test_run_names_the_file_that_snakemake_would_refuse_without_a_name(tmp_path, monkeypatch, capsys, content, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    if content is not None:
        (tmp_path / "my.yaml").write_bytes(content)
    monkeypatch.setattr("sealed_experts.cli.run.run_snakemake", lambda arguments: pytest.fail("Snakemake was started"))
    for more in ([], ["-n"]):
        assert cli.main(["run", *more, "--configfile", "my.yaml"]) == 1
        assert told in capsys.readouterr().err


def test_the_preparation_logs_on_any_terminal(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    rows = [json.dumps({"instruction": f"q{number}", "output": "a"}) for number in range(300)]
    (tmp_path / "zażółć.jsonl").write_text("\n".join([*rows, "nonsense"]))
    values = {
        "dataset": {"source": "files", "paths": [str(tmp_path / "zażółć.jsonl")]},
        "name": "d",
        "recipe": 2,
        "seed": 1,
    }
    command = [sys.executable, "scripts/prepare_data.py", "--settings", json.dumps(values)]
    command += ["--base", str(tmp_path / "base.json")]
    for kind in ("train", "val", "stats"):
        command += [f"--{kind}", str(tmp_path / kind)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"za\\u017c" in done.stdout
