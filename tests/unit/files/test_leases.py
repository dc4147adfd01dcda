"""GPUs of one machine go to one job each. The GPUs are made up; the processes, the locks and the kills are real."""

import dataclasses
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealed_experts import machine
from sealed_experts.errors import UserError
from sealed_experts.files.leases import FOLDER, device_lease
from sealed_experts.machine import visible_devices
from sealed_experts.training import interruption

ROOT = Path(__file__).resolve().parents[3]
# Prints what it got, then stays until its input ends.
HOLDER = """
import os, sys
from sealed_experts import machine
from sealed_experts.files.leases import device_lease
machine.device_files = lambda: [f"/dev/nvidia{index}" for index in range(8)]
with device_lease("cuda", count=int(sys.argv[1])) as devices:
    print("leased", ",".join(devices), os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "leases"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SEALED_EXPERTS_LEASED", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(machine, "device_files", lambda: [f"/dev/nvidia{index}" for index in range(8)])


@pytest.fixture
def hold():
    """Start a process that leases GPUs; it is killed when the test ends."""
    started = []

    def start(*, count=1, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(count)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def leased(process):
    """The GPUs that a process holds, once it does."""
    line = process.stdout.readline()
    while not line.startswith("leased"):
        assert line, "the holder ended"
        line = process.stdout.readline()
    _, devices, visible = line.split()
    assert devices == visible
    return devices


def wait_until_it_waits(process):
    line = process.stdout.readline()
    assert line.startswith("waiting for")
    return line


def test_two_jobs_get_a_gpu_each(hold):
    first, second = hold(), hold()
    assert {leased(first), leased(second)} == {"0", "1"}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_releases_its_gpu_to_one_that_waits(hold, end):
    first, second = hold(), hold()
    of_first = leased(first)
    leased(second)
    third = hold()
    line = wait_until_it_waits(third)
    assert f"GPU {of_first} by process {first.pid} on " in line
    os.kill(first.pid, end)
    assert leased(third) == of_first


def test_a_holder_that_ends_releases_its_gpu(hold):
    first = hold(CUDA_VISIBLE_DEVICES="5")
    assert leased(first) == "5"
    second = hold(CUDA_VISIBLE_DEVICES="5")
    wait_until_it_waits(second)
    first.stdin.close()
    assert leased(second) == "5"


def test_only_gpus_that_were_given_are_leased(hold):
    both = {leased(hold(CUDA_VISIBLE_DEVICES="2,3")) for _ in range(2)}
    assert both == {"2", "3"}
    assert leased(hold(CUDA_VISIBLE_DEVICES="3,4")) == "4"


def test_gpus_may_be_given_by_name(hold):
    name = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
    assert leased(hold(CUDA_VISIBLE_DEVICES=name)) == name


def test_a_job_of_several_gpus_takes_all_of_them_or_none(hold):
    first = hold()
    assert leased(first) == "0"
    pair = hold(count=2)
    wait_until_it_waits(pair)
    assert leased(hold()) == "1"  # the pair waits without keeping the free one
    first.kill()
    hold_ended = time.monotonic() + 2
    while time.monotonic() < hold_ended:
        assert pair.poll() is None
        time.sleep(0.1)


def test_jobs_of_different_slurm_allocations_number_their_gpus_independently(hold):
    first, second = (hold(CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID=job) for job in ("7", "8"))
    assert (leased(first), leased(second)) == ("0", "0")
    wait_until_it_waits(hold(CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID="7"))


def test_a_process_below_a_lease_takes_none_and_sees_what_is_leased(hold):
    with device_lease("cuda") as devices:
        assert devices == ("0",)
        child = (
            "from sealed_experts import machine; machine.device_files = lambda: ['/dev/nvidia0']\n"
            "from sealed_experts.files.leases import device_lease; import os\n"
            "with device_lease('cuda') as own: print(own, os.environ['CUDA_VISIBLE_DEVICES'])"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
        done = subprocess.run([sys.executable, "-c", child], env=environment, capture_output=True, text=True)
        assert done.stdout == "() 0\n", done.stderr
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(("device", "visible"), [("cpu", "0,1"), ("auto", ""), ("cuda", "NoDevFiles")])
def test_nothing_is_leased_without_a_gpu(device, visible, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with device_lease(device) as devices:
        assert devices == ()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert not (tmp_path / "leases").exists()


def test_more_gpus_than_there_are_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match=r"needs 3 GPUs and sees 2 \(0, 1\)"), device_lease("cuda", count=3):
        pass


def test_waiting_can_be_ended(hold, monkeypatch):
    leased(hold(CUDA_VISIBLE_DEVICES="0"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), device_lease("cuda", while_waiting=stop):
        pytest.fail("leased a GPU that is in use")


def test_a_folder_of_locks_that_is_somebody_elses_is_refused(tmp_path, monkeypatch):
    (tmp_path / "target").mkdir()
    (tmp_path / "leases").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match="is not a folder of yours"), device_lease("cuda"):
        pass


@pytest.mark.parametrize(
    ("given", "visible"),
    [
        ("0", ["0"]),
        (" 1, 0", ["1", "0"]),
        ("0,-1,2", ["0"]),
        ("0,8,2", ["0"]),  # there is no ninth
        ("1,1", ["1"]),
        ("", []),
        ("MIG-a/1/2", ["MIG-a/1/2"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(given, visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_devices() == visible


def test_without_cuda_visible_devices_all_gpus_are_there(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine, "device_files", lambda: ["/dev/nvidia3", "/dev/nvidia7"])
    assert visible_devices() == ["0", "1"]


def test_a_variable_does_not_make_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, "device_files", lambda: [])
    assert visible_devices() == []


def test_trainers_side_by_side_train_on_a_gpu_each(tmp_path, tiny_base, tiny_dataset):
    from sealed_experts.training.stage import train_stage
    from tests.unit.training.test_stage import PLAIN, make_job, supervised

    def train(name):
        def objective(materials):
            (tmp_path / name).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            until = time.monotonic() + 30
            while not all((tmp_path / other).exists() for other in ("a", "b")) and time.monotonic() < until:
                time.sleep(0.01)  # neither ends before the other has begun
            return supervised(materials)

        interruption.STARTED_BY = os.getppid()
        job = make_job(tmp_path / f"run_{name}", tiny_base, tiny_dataset, privacy=PLAIN, max_steps=1)
        train_stage(dataclasses.replace(job, device="auto"), objective)

    trainers = [multiprocessing.get_context("fork").Process(target=train, args=(name,)) for name in ("a", "b")]
    for trainer in trainers:
        trainer.start()
    for trainer in trainers:
        trainer.join(60)
    assert [trainer.exitcode for trainer in trainers] == [0, 0]
    assert {(tmp_path / name).read_text() for name in ("a", "b")} == {"0", "1"}


def test_nothing_asks_for_a_gpu_before_it_is_leased():
    """CUDA reads CUDA_VISIBLE_DEVICES once: a script that had asked at import would use a GPU of another job."""
    scripts = [path.stem for path in (ROOT / "scripts").glob("*.py") if "device_lease" in _source(path)]
    assert {"train_stage", "evaluate_expert", "check_composition"} <= set(scripts)
    check = (
        "import torch\n"
        "def asked(*_, **__): raise SystemExit('asked for a GPU at import')\n"
        "torch.cuda.device_count = torch.cuda.is_available = torch.cuda._lazy_init = asked\n"
        f"import {', '.join(scripts)}\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _source(path):
    """A script's own text and that of the command it runs, if it trains."""
    text = path.read_text()
    stage = ROOT / "scripts" / "sealed_experts" / "training" / "stage.py"
    return text + stage.read_text() if re.search(r"\btrain_job\b", text) else text


def test_the_launcher_leases_for_all_its_processes_and_they_take_none_themselves(tmp_path):
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['SEALED_EXPERTS_LEASED'])"
    program = (
        "import runpy, sys; from sealed_experts import machine;"
        " machine.device_files = lambda: [f'/dev/nvidia{index}' for index in range(8)];"
        f" sys.argv = ['launcher', '--processes', '2', '--device', 'auto', '--', sys.executable, '-c', {show!r}];"
        " runpy.run_path('scripts/sealed_experts/training/launcher.py', run_name='__main__')"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1,4,5", "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == "using GPU 1, 4"
    assert re.fullmatch(r"1,4 \d+", done.stdout.splitlines()[1])
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "CUDA_VISIBLE_DEVICES": "3"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: this job needs 2 GPUs and sees 1 (3)")
