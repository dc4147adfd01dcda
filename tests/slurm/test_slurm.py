"""The real workflow on a real SLURM, through profiles/slurm: who gets the GPU, and that no stop loses anything."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sealed_experts.training.checkpoints import load_state, tensors_digest
from tests.slurm.cluster import ACCOUNT, GPU
from tests.workflow.conftest import TINY, new_project

EXPERT = "banking_expert"
STEPS = 400  # so many that every attempt is still training when it is stopped
LIMIT = 60  # seconds; SLURM's shortest
ADAPTER = f"results/experts/{EXPERT}/sft/adapter_final.pt"
ON_GPU = {"train_sft", "evaluate_expert", "check_composition"}
LIGHT = {"summarize_sft", "select_stage", "export_peft", "seal_package", "assemble_moe"}
ENDED = {"FAILED", "CANCELLED", "TIMEOUT", "COMPLETED", "NODE_FAIL", "OUT_OF_MEMORY"}


class Run:
    """Snakemake on the login node, and its jobs as SLURM knows them."""

    def __init__(self, project, cluster):
        self._project, self._cluster = project, cluster
        self._output = project.folder / "snakemake.out"
        command = [
            *(sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm"),
            # A cluster without an accounting database, and a test without patience.
            *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"),
            *("--configfile", "config/test.yaml"),
        ]
        environment = {
            **project.environment(),
            **cluster.environment(),
            "SEALED_EXPERTS_HOME": str(project.home),
            "SBATCH_ACCOUNT": ACCOUNT,
            "SEALED_EXPERTS_GPU_MODEL": GPU,
            "SEALED_EXPERTS_GPU_PARTITION": "heavy",
        }
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                command, cwd=project.folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def output(self):
        return self._output.read_text(errors="replace")

    def jobs(self):
        """All jobs so far by their numbers, with the rule of each under `rule`."""
        lines = self._cluster.run("scontrol", "--oneliner", "--details", "show", "job", check=False).splitlines()
        jobs = {}
        for line in lines:
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if "JobId" in fields:
                rule = re.match(r"rule_(\w+?)(_wildcards_.*)?$", fields["Comment"])[1]
                jobs[int(fields["JobId"])] = {**fields, "rule": rule}
        return jobs

    def training(self, attempt):
        """Wait until this attempt at training runs and has trained on; return the job's number."""
        self.wait(lambda: len(self.trainers()) == attempt and self.log().count("resumed after") == (attempt > 1))
        before = self.step()
        self.wait(lambda: self.step() > before)
        return self.trainers()[-1]

    def pause_until(self, number, second):
        """Stop the trainer's process until its job has run for `second` seconds: a step that takes long."""
        folder = self._project.folder / "results" / "experts" / EXPERT / "sft"
        trainer = json.loads((folder / "state.json").read_text())["pid"]
        os.kill(trainer, signal.SIGSTOP)
        try:
            self.wait(lambda: int(self.jobs()[number]["RunTime"].rpartition(":")[2]) >= second)
        finally:
            os.kill(trainer, signal.SIGCONT)

    def trainers(self):
        return [number for number, job in self.jobs().items() if job["rule"] == "train_sft"]

    def log(self):
        path = self._project.folder / "results" / "experts" / EXPERT / "logs" / "train_sft.log"
        return path.read_text() if path.exists() else ""

    def step(self):
        path = self._project.folder / "results" / "experts" / EXPERT / "sft" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def state(self, number):
        return self.jobs()[number]["JobState"]

    def wait(self, condition, *, seconds=120.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"what the test waits for did not happen:\n{self.output[-5000:]}"
            assert self.process.poll() is None, f"Snakemake ended too early:\n{self.output[-5000:]}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def uninterrupted(slurm, tmp_path_factory):
    """The tiny configuration with one expert, trained in one go without SLURM."""
    configuration = json.loads(json.dumps(TINY))
    configuration["device"] = "auto"  # with `cpu`, no job would ask for a GPU
    configuration["experts"] = {EXPERT: {**configuration["experts"][EXPERT], "stages": ["sft"]}}
    configuration["datasets"] = {"banking": configuration["datasets"]["banking"]}
    configuration["defaults"]["sft"].update(
        max_steps=STEPS, log_steps=10, eval_steps=STEPS, checkpoint_steps=STEPS, checkpoint_minutes=60
    )
    # Many steps: a budget that they do not reach.
    configuration["defaults"]["privacy"].update(noise_multiplier=8.0)
    project = new_project(tmp_path_factory.mktemp("uninterrupted") / "project", tmp_path_factory.mktemp("home"))
    project.configure(configuration)
    project.snakemake(ADAPTER)
    return project


@pytest.fixture(scope="module")
def run(uninterrupted, cluster, tmp_path_factory):
    """The whole workflow on the cluster; its training is warned, cancelled, and runs out of time."""
    project = uninterrupted.copy(tmp_path_factory.mktemp("run") / "project")
    shutil.rmtree(project.folder / "results" / "experts")
    # One minute a job. SLURM's own warning, 90 seconds ahead of that, would come before the trainer has started.
    warning = """return "'--signal=USR1@90'\""""
    for name, before, after in (("train.smk", "runtime=720", "runtime=1"), ("common.smk", warning, 'return ""')):
        rules = project.folder / "rules" / name
        text = rules.read_text()
        assert text.count(before) == 1
        rules.write_text(text.replace(before, after))
    running = Run(project, cluster)
    try:
        warned = running.training(1)
        cluster.run("scancel", "--signal=USR1", str(warned))
        running.wait(lambda: running.state(warned) in ENDED)
        cancelled = running.training(2)
        cluster.run("scancel", str(cancelled))
        running.wait(lambda: running.state(cancelled) in ENDED)
        late = running.training(3)
        running.pause_until(late, LIMIT - 10)
        running.wait(lambda: running.state(late) in ENDED)
        running.process.wait(timeout=400)
        running.finished = running.jobs()
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(timeout=60)
    assert running.process.returncode == 0, running.output
    return running


def test_training_jobs_hold_the_gpu_and_light_ones_do_not(run):
    jobs = run.finished.values()
    assert {job["rule"] for job in jobs} == ON_GPU | LIGHT
    assert {job["JOB_GRES"] for job in jobs if job["rule"] in ON_GPU} == {f"gpu:{GPU}:1"}
    assert {job["JOB_GRES"] for job in jobs if job["rule"] in LIGHT} == {"(null)"}


def test_the_environment_decides_account_and_partitions(run):
    partitions = {(job["Partition"], job["rule"] in ON_GPU) for job in run.finished.values()}
    assert partitions == {("heavy", True), ("light", False)}
    assert {job["Account"] for job in run.finished.values()} == {ACCOUNT}


def test_a_stopped_trainer_saves_and_the_resubmission_goes_on_from_there(run):
    """A warning, `scancel`, the time limit: Snakemake prints the log of each attempt that failed."""
    stops = re.findall(r"interrupted: (.*?); saved after step (\d+) of", run.output)
    assert [reason for reason, _ in stops] == [
        "received SIGUSR1",
        "received SIGTERM",
        "the time of the SLURM job is nearly over",
    ]
    saved = [int(step) for _, step in stops]
    resumed = [int(step) for step in re.findall(r"resumed after step (\d+) of", run.output + run.log())]
    assert saved == resumed
    assert saved == sorted(set(saved))
    assert saved[0] > 0
    trainers = [job for job in run.finished.values() if job["rule"] == "train_sft"]
    assert [job["JobState"] for job in trainers] == ["FAILED", "CANCELLED", "FAILED", "COMPLETED"]


def test_a_trainer_saves_before_the_limit_of_its_job(run):
    late = [job for job in run.finished.values() if job["rule"] == "train_sft"][2]
    assert late["TimeLimit"] == "00:01:00"
    assert LIMIT - 10 <= int(late["RunTime"].rpartition(":")[2]) < LIMIT
    assert late["ExitCode"] == "1:0"  # not ended by a signal


def test_the_adapter_is_that_of_an_uninterrupted_run_bit_for_bit(run, uninterrupted):
    adapters = [load_state(project.folder / ADAPTER) for project in (run._project, uninterrupted)]
    assert adapters[0]["step"] == adapters[1]["step"] == STEPS
    digests = [tensors_digest(adapter["model_state_dict"]) for adapter in adapters]
    assert digests[0] == digests[1]
