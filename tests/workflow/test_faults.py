"""A sample of the fault sweep (`make faults` is the whole of it)."""

import subprocess
import sys

import pytest
from tests.conftest import ROOT

pytestmark = pytest.mark.workflow


def test_a_sample_of_kills_and_losses_of_power_ends_exactly():
    command = [sys.executable, "-m", "tests.faults.sweep", "--trainer", "9", "--power", "6", "--workflow", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 15 | 0 |" in done.stdout
