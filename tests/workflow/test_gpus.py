"""Several GPUs on one machine: `--resources gpu=N` trains N experts at once, each on its own GPU."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.workflow.conftest import TINY

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

# Every Python process of the run sees two GPUs; the CPU build of PyTorch still trains on the CPU.
TWO_GPUS = """
import glob
really = glob.glob
glob.glob = lambda pattern, **options: (
    ["/dev/nvidia0", "/dev/nvidia1"] if pattern.startswith("/dev/nvidia") else really(pattern, **options)
)
"""


def trainers(project):
    """The ids of the processes that train in this project."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            if b"train_stage.py" in command.split(b"\0")[1:2][0] and os.path.samefile(entry / "cwd", project.folder):
                found.add(int(entry.name))
        except (OSError, IndexError):
            continue
    return found


def test_as_many_experts_train_at_once_as_gpus_are_given_each_on_its_own(prepared, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TWO_GPUS)
    configuration = json.loads(json.dumps(TINY))
    configuration["device"] = "auto"
    prepared.configure(configuration)
    experts = list(configuration["experts"])
    command = prepared.command(*(f"results/experts/{name}/sft/adapter_final.pt" for name in experts), cores=3)
    command[3:3] = ["--resources=gpu=2"]
    environment = prepared.environment(
        PYTHONPATH=str(tmp_path / "site"), SEALED_EXPERTS_LEASES=str(tmp_path / "leases"), CUDA_VISIBLE_DEVICES="0,1"
    )
    at_once, all_of_them = 0, set()
    with (
        open(tmp_path / "snakemake.out", "wb") as output,
        subprocess.Popen(command, cwd=prepared.folder, env=environment, stdout=output, stderr=output) as run,
    ):
        while run.poll() is None:
            living = trainers(prepared)
            at_once, all_of_them = max(at_once, len(living)), all_of_them | living
            time.sleep(0.05)
        assert run.returncode == 0, (tmp_path / "snakemake.out").read_text()
    assert (at_once, len(all_of_them)) == (2, 3)
    logs = [(prepared.folder / "results/experts" / name / "logs/train_sft.log").read_text() for name in experts]
    used = [
        line.removeprefix("using GPU ") for log in logs for line in log.splitlines() if line.startswith("using GPU")
    ]
    assert sorted(used) in (["0", "0", "1"], ["0", "1", "1"])
    assert "waiting for" not in "".join(logs)  # Snakemake waited for a GPU; no job did
