"""Rewards that the user wrote: how they are found, called and checked, and what is said when they are wrong."""

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sealed_experts.errors import UserError
from sealed_experts.rewards import Score
from sealed_experts.rewards.making.checked import CheckedReward
from sealed_experts.rewards.making.maker import make_reward, reward_code, reward_source
from sealed_experts.rewards.making.modules import find_module
from tests.conftest import ROOT

PLAIN = {}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules into the current folder; forget them afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def write_module(text, *, path="own_reward.py"):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        names.append(path.partition("/")[0].removesuffix(".py"))
        return file

    yield write_module
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] in names:
            del sys.modules[loaded]


def scored(text, write, *, options=PLAIN, prompt="the prompt", response="the response"):
    write(text)
    return make_reward("own_reward:f", options).score(prompt, response)


def test_a_function_in_the_current_folder_is_a_reward(write):
    write("def f(prompt, response):\n    return len(response) / 10 if prompt == 'p' else 0\n")
    reward = make_reward("own_reward:f", PLAIN)
    assert reward.name == "own_reward:f"
    assert reward.weights == {"own_reward:f": 1.0}
    assert reward.score("p", "four") == Score(0.4, {"own_reward:f": 0.4})
    assert reward.score("q", "four") == Score(0.0, {"own_reward:f": 0.0})


def test_a_function_may_return_axes(write):
    score = scored("def f(p, r):\n    return {'tone': 0.2, 'reward': 0.6, 'pace': 1}\n", write)
    assert score == Score(0.6, {"own_reward:f": 0.6, "tone": 0.2, "pace": 1.0})


def test_its_neighbours_can_be_imported_also_while_scoring(write):
    write("half = 0.5\n", path="own_neighbour.py")
    assert scored("def f(p, r):\n    import own_neighbour\n    return own_neighbour.half\n", write).value == 0.5


def test_a_module_in_a_package(write):
    write("", path="own_package/__init__.py")
    write("def f(p, r):\n    return 1\n", path="own_package/inner.py")
    assert make_reward("own_package.inner:f", PLAIN).score("", "").value == 1


def test_a_file_here_never_shadows_an_installed_module(write):
    write("raise RuntimeError\n", path="colorsys.py")
    write("import colorsys\ndef f(p, r):\n    return colorsys.rgb_to_hsv(1, 1, 1)[2]\n")
    with pytest.raises(UserError, match="has no function `own`"):
        make_reward("colorsys:own", PLAIN)
    assert make_reward("own_reward:f", PLAIN).score("", "").value == 1  # rgb_to_hsv of white


@pytest.mark.parametrize(
    "value", ["0.25", "__import__('fractions').Fraction(1, 4)", "__import__('numpy').float32(0.25)"]
)
def test_any_real_number_will_do(write, value):
    result = scored(f"def f(p, r):\n    return {value}\n", write).value
    assert (result, type(result)) == (0.25, float)


@pytest.mark.parametrize(("value", "expected"), [("sum([0.1] * 3) + 0.7", 1.0), ("1 + 1e-12", 1.0), ("-1e-12", 0.0)])
def test_rounding_beyond_the_range_is_forgiven(write, value, expected):
    assert scored(f"def f(p, r):\n    return {value}\n", write).value == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("None", "it returned None (NoneType), which is no number"),
        ("'0.5'", "it returned '0.5' (str), which is no number"),
        ("True", "it returned True (bool), which is no number"),
        ("[0.5]", "it returned [0.5] (list), which is no number"),
        ("1j", "which is no number"),
        ("float('nan')", "it returned nan (float), which is outside [0, 1]"),
        ("float('inf')", "it returned inf (float), which is outside [0, 1]"),
        ("-0.5", "it returned -0.5 (float), which is outside [0, 1]"),
        ("1.001", "it returned 1.001 (float), which is outside [0, 1]"),
        ("10 ** 400", "which is outside [0, 1]"),
        ("{'reward': 2, 'tone': 0}", "it returned 2 (int), which is outside [0, 1]"),
        ("{'reward': 1, 'tone': 2}", "its axis `tone` returned 2 (int), which is outside [0, 1]"),
        ("{'reward': 1, 'tone': 'good'}", "its axis `tone` returned 'good' (str), which is no number"),
        ("{'tone': 1}", "a mapping must give `reward`"),
        ("{'reward': 1, 3: 1}", "its keys are 'reward', 3"),
        ("{}", "its keys are none"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(3)", "SystemExit: 3"),
    ],
)
def test_what_is_no_score_is_an_error_that_names_prompt_and_value(write, value, message):
    with pytest.raises(UserError) as caught:
        scored(f"def f(p, r):\n    return {value}\n", write, prompt="What is\na bond?")
    assert message in str(caught.value)
    assert "own_reward:f" in str(caught.value)
    assert '"What is\\na bond?"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_prompts_and_values_are_shortened(write):
    with pytest.raises(UserError) as caught:
        scored("def f(p, r):\n    return 'x' * 10_000\n", write, prompt="y" * 10_000)
    assert len(str(caught.value)) < 400


def test_a_failure_names_its_line(write):
    with pytest.raises(UserError, match=r"own_reward\.py, line 4\)") as caught:
        scored("def g():\n    return {}\ndef f(p, r):\n    return g()['missing']\n", write)
    assert "KeyError: 'missing'" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_object_that_cannot_even_be_shown_is_told(write):
    odd = """
class Odd:
    def __repr__(self): raise RuntimeError
class Number(Odd, float):
    def __float__(self): raise RuntimeError
class Key(str):
    __repr__ = Odd.__repr__
class Bad(dict):
    def __iter__(self): raise RuntimeError("no keys")
    keys = __iter__
"""
    for value, told in (
        ("Odd()", "no number"),
        ("Number(2)", "no number"),
        ("10 ** 400", "outside"),
        ("{Odd(): 1}", "its keys are of Odd"),
        ("Bad()", "no keys"),
    ):
        with pytest.raises(UserError, match=told):
            scored(f"{odd}\ndef f(p, r): return {value}\n", write)
        del sys.modules["own_reward"]


def test_a_generators_end_is_a_failure_of_the_function(write):
    with pytest.raises(UserError, match='the function failed for the prompt "the prompt": GeneratorExit'):
        scored("def f(p, r): raise GeneratorExit\n", write)


def test_an_interruption_is_no_mistake_of_the_function(write):
    with pytest.raises(KeyboardInterrupt):
        scored("def f(p, r):\n    raise KeyboardInterrupt\n", write)


def test_axes_must_stay_the_same(write):
    write("def f(p, r):\n    return {'reward': 1, r: 1}\n")
    reward = make_reward("own_reward:f", PLAIN)
    assert reward.score("p", "a").axes == {"own_reward:f": 1, "a": 1}
    with pytest.raises(UserError, match=r"the axes are .*`b`.*always return the same"):
        reward.score("p", "b")


def test_an_axis_called_repetition_does_not_meet_the_penalty(write):
    text = "def f(p, r):\n    return {'reward': 1, 'repetition': 0.5}\n"
    assert scored(text, write).axes["repetition"] == 0.5
    with pytest.raises(UserError, match="`repetition` is the name of the axis"):
        scored(text, write, options={"repetition_penalty": 0.5})


def test_the_penalty_is_for_every_reward(write):
    score = scored("def f(p, r):\n    return 0.8\n", write, options={"repetition_penalty": 0.5}, response="so " * 40)
    assert score.axes["own_reward:f"] == 0.8
    assert score.value == pytest.approx(0.8 * (1 - 0.5 * score.axes["repetition"]))
    assert score.axes["repetition"] > 0.9


def test_a_function_within_a_composite(write):
    write("def f(p, r):\n    return {'reward': 0.5, 'tone': 0.25}\n")
    parts = ({"reward": "own_reward:f", "weight": 3.0}, {"reward": "length_penalty"})
    reward = make_reward("composite", {"parts": parts})
    score = reward.score("p", "r")
    assert score.value == pytest.approx(0.75 * 0.5 + 0.25)
    assert score.axes == {"own_reward:f": 0.5, "own_reward:f.tone": 0.25, "length_penalty": 1.0}
    assert reward.weights == {"own_reward:f": 0.75, "length_penalty": 0.25}


def test_a_mistake_within_a_composite_names_the_part(write):
    write("def f(p, r):\n    return 7\n")
    reward = make_reward("composite", {"parts": ({"reward": "own_reward:f"},)})
    with pytest.raises(UserError, match=r"reward own_reward:f: .*returned 7"):
        reward.score("p", "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(p, r)\n    return 1\n", "own_reward.py, line 1: SyntaxError: expected ':'"),
        ("\nif True:\nx = 1\n", "own_reward.py, line 3: IndentationError"),
        ("import missing_dependency\n", "No module named 'missing_dependency' ("),
        ("x = 1\nraise ValueError('two\\nlines')\n", "ValueError: two lines ("),
        ("import sys\nsys.exit('no')\n", "SystemExit: no"),
        ("def g(p, r):\n    return 1\n", "has no function `f`; known here: `g`"),
        ("def ff(p, r):\n    return 1\n", "has no function `f`; did you mean `ff`?"),
        ("f = 3\n", "`f` in the module `own_reward` "),
        ("def f(p):\n    return 1\n", "cannot be called as f(prompt, response)"),
        ("def f(p, r, other):\n    return 1\n", "cannot be called as f(prompt, response)"),
        ("def f(*, prompt, response):\n    return 1\n", "cannot be called as f(prompt, response)"),
    ],
)
def test_a_module_that_cannot_be_used_is_told_before_scoring(write, text, message):
    write(text)
    with pytest.raises(UserError) as caught:
        make_reward("own_reward:f", PLAIN)
    assert message in str(caught.value)
    assert "own_reward" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_source_is_found_without_running_it(write, tmp_path):
    write("raise RuntimeError('was run')\n")
    write("raise RuntimeError('was run')\n", path="own_package/__init__.py")
    write("", path="own_package/inner.py")
    assert reward_source("own_reward:f", PLAIN) == [Path("own_reward.py")]
    assert reward_source("own_package:f", PLAIN) == [Path("own_package/__init__.py")]
    assert reward_source("own_package.inner:f", PLAIN) == [Path("own_package/inner.py")]
    assert reward_source("own_reward.inner:f", PLAIN) == []
    assert reward_source("nowhere_at_all:f", PLAIN) == []


def test_sources_of_a_composite_each_once(write):
    write("")
    write("", path="own_other.py")
    names = ("own_reward:f", "finance", "own_other:g", "own_reward:g")
    options = {"parts": tuple({"reward": name} for name in names)}
    assert reward_source("composite", options) == [Path("own_reward.py"), Path("own_other.py")]
    assert reward_source("finance", {}) == []


def test_the_code_of_a_reward_is_its_module_and_what_that_imports(write):
    write("import tables\nimport numpy\ndef f(p, r): return tables.VALUE\n")
    tables = write("VALUE = 0.5\n", path="tables.py")
    make_reward("own_reward:f", PLAIN)
    code = reward_code("own_reward:f", PLAIN)
    assert code["tables"] == hashlib.sha256(tables.read_bytes()).hexdigest()
    assert "own_reward" in code
    assert not {name.partition(".")[0] for name in code} & {
        "numpy",
        "pytest",
        "sys",
        "hashlib",
        "sealed_experts",
        "__main__",
    }
    assert reward_code("finance", PLAIN) == {}
    parts = {"parts": ({"reward": "finance"}, {"reward": "own_reward:f"})}
    assert reward_code("composite", parts)["own_reward"] == code["own_reward"]


def test_source_elsewhere_is_absolute(write, tmp_path, monkeypatch):
    file = write("")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reward_source("own_reward:f", PLAIN) == [file]


def test_a_link_in_this_folder_is_a_file_of_this_folder(write, tmp_path):
    write("", path="elsewhere/real.py")
    (tmp_path / "own_link.py").symlink_to(tmp_path / "elsewhere" / "real.py")
    assert reward_source("own_link:f", PLAIN) == [Path("own_link.py")]


@pytest.mark.parametrize("name", ["", ".", "a..b", "json.", "os.path.join.x", "nowhere_at_all"])
def test_no_such_module(name):
    assert find_module(name) is None


def test_a_folder_that_is_no_package_is_no_module(write):
    write("", path="own_folder/readme.py")
    assert find_module("own_folder") is None
    assert find_module("own_folder.readme") is not None
    assert find_module("json.decoder") is not None


class Fixed:
    name = "fixed"
    repetition_penalty = 0.0

    def __init__(self, value, **axes):
        self.weights = dict.fromkeys(axes, 1 / len(axes))
        self._score = Score(value, axes)

    def score(self, prompt, response):
        return self._score


def test_built_in_rewards_are_checked_as_well():
    assert CheckedReward(Fixed(np.float64(0.5), a=Fraction(1, 2))).score("p", "r") == Score(0.5, {"a": 0.5})
    with pytest.raises(UserError, match='reward fixed: for the prompt "p" its axis `a` returned 3'):
        CheckedReward(Fixed(0.5, a=3)).score("p", "r")


def test_scoring_loads_no_torch():
    code = """
import sys
from sealed_experts.rewards import REWARDS
from sealed_experts.rewards.making.maker import make_reward, reward_source
own = {"keyword_contains": {"keywords": ["a"]}}
parts = [{"reward": name, **own.get(name, {})} for name in REWARDS if name != "composite"]
make_reward("composite", dict(parts=parts, repetition_penalty=1.0)).score("Buy it?", "a\\nb")
sys.exit(str([name for name in ("torch", "transformers", "numpy", "jsonschema", "yaml") if name in sys.modules] or ""))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_a_restored_file_of_the_same_size_and_time_is_not_run_from_old_bytecode(write, monkeypatch):
    """Python's own check, size and time in seconds, took the code of the file that was there before."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = write("def f(p, r):\n    return 0.25\n")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert make_reward("own_reward:f", PLAIN).score("", "").value == 0.25
    del sys.modules["own_reward"]
    write("def f(p, r):\n    return 0.75\n")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert make_reward("own_reward:f", PLAIN).score("", "").value == 0.75
