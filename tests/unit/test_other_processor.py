"""Tests whose values are floats, once more as on another processor: other last bits, the same verdicts."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.golden.workplace import PORTABLE

SAMPLE = (
    "test_composition.py",
    "test_demo_base.py",
    "test_evaluation.py",
    "test_gradients.py",
    "test_mechanism.py",
    "test_moe_engine.py",
    "test_reinforce.py",
    "test_reinforce_stage.py",
    "test_rollouts.py",
    "test_stage.py",
)


@pytest.mark.slow
def test_other_kernels_change_no_verdict():
    files = [next(ROOT.glob(f"tests/**/{name}")) for name in SAMPLE]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SEALED_EXPERTS"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *map(str, files)],
        cwd=ROOT,
        env=kept | PORTABLE,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
