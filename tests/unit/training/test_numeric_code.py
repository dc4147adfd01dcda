"""Which edit abandons which run: only the code that decides a run's numbers."""

import json
import subprocess
import sys

import pytest

from sealed_experts.training.numeric_code import LIBRARY, SILENT, code_digest, numeric_modules

SFT = ["training.objectives.sft", "models.adapters.lora", "privacy.engines.hooks"]
REINFORCE = ["training.objectives.reinforce", "rewards.finance", "models.adapters.lora", "privacy.engines.hooks"]
RUNS = {"sft": SFT, "reinforce": REINFORCE}
FILES = sorted(LIBRARY.rglob("*.py"))


def name_of(file):
    return ".".join(file.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


def with_edit(edited, addition=b"\nEDITED = True\n"):
    return lambda path: path.read_bytes() + (addition if path == edited else b"")


@pytest.mark.parametrize("run", RUNS)
def test_an_edit_moves_the_runs_that_use_the_code_and_no_others(run):
    """Edit every file of the library in turn."""
    before, deciding = code_digest(RUNS[run]), numeric_modules(RUNS[run])
    moved = {name_of(file) for file in FILES if code_digest(RUNS[run], read=with_edit(file)) != before}
    assert moved == deciding


def test_whatever_a_trainer_loads_is_part_of_it_but_for_what_is_named():
    """Compare with the modules that Python loads."""
    code = f"""
import importlib, json, os, sys
import opacus, peft, torch, transformers  # once for all runs
for run in {list(RUNS.values())!r}:
    if os.fork() == 0:
        for name in ["training.stage", *run]:
            importlib.import_module("sealed_experts." + name)
        names = [name.partition(".")[2] for name in sys.modules if name.startswith("sealed_experts.")]
        print(json.dumps(names), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for run, line in zip(RUNS.values(), done.stdout.splitlines(), strict=True):
        loaded = set(json.loads(line))
        assert len(loaded) > 40
        assert loaded - SILENT <= numeric_modules(run)


@pytest.mark.parametrize(
    "name",
    [
        *("privacy.mechanism", "privacy.streams", "privacy.engines.hooks", "training.loop", "training.samplers"),
        *("training.stage", "training.response", "training.schedules", "models.attachment", "data.templates"),
    ],
)
def test_what_decides_every_run(name):
    assert name in numeric_modules(SFT)
    assert name in numeric_modules(REINFORCE)


def test_what_decides_some_runs_only():
    assert {"rewards.finance", "training.rollouts", "training.policy"} <= numeric_modules(REINFORCE)
    assert not {"rewards.finance", "training.rollouts", "training.objectives.reinforce"} & numeric_modules(SFT)
    assert "rewards.length_penalty" not in numeric_modules(REINFORCE)
    assert "privacy.engines.vmap" not in numeric_modules(REINFORCE)


def test_a_new_feature_abandons_nobody(tmp_path):
    """A bug: a new `dpo.py` made every unfinished run start again."""
    before = code_digest(SFT)
    new = LIBRARY / "training" / "objectives" / "brand_new.py"
    assert not new.exists()
    assert code_digest(SFT, read=with_edit(new)) == before
    rooms = {name.split(".")[0] for name in numeric_modules(SFT) | numeric_modules(REINFORCE)}
    assert not rooms & {"cli", "configuration", "evaluation", "moe", "packages"}


def test_comments_and_docstrings_decide_nothing():
    loop = LIBRARY / "training" / "loop.py"
    before = code_digest(SFT)
    assert code_digest(SFT, read=with_edit(loop, b"\n# A remark.\n")) == before
    assert code_digest(SFT, read=with_edit(loop, b'\nclass Empty:\n    """A word."""\n')) != before
    other = {loop: loop.read_bytes().replace(b'"""The one training loop.', b'"""The only training loop.')}
    assert other[loop] != loop.read_bytes()
    assert code_digest(SFT, read=lambda path: other.get(path) or path.read_bytes()) == before


def test_what_is_silent_exists():
    assert {name_of(file) for file in FILES} >= SILENT
