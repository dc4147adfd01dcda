"""Tests whose values are floats, once more as on another processor: other last bits, the same verdicts."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.golden.workplace import PORTABLE

SAMPLE = (
    "evaluation/test_evaluation.py",
    "models/test_demo_base.py",
    "moe/test_composition.py",
    "moe/test_engine.py",
    "privacy/test_engines.py",
    "privacy/test_mechanism.py",
    "training/test_reinforce.py",
    "training/test_reinforce_stage.py",
    "training/test_rollouts.py",
    "training/test_stage.py",
)


@pytest.mark.slow
def test_other_kernels_change_no_verdict():
    files = [ROOT / "tests" / "unit" / name for name in SAMPLE]
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
