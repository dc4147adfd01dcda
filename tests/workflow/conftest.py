"""Runs of the real workflow, as a subprocess in a temporary folder, on tiny models."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.planning import Planner
from tests.workflow.warm import WarmStarts

ROOT = Path(__file__).resolve().parents[2]
TREE = ["Snakefile", "rules", "scripts", "config", "envs", "profiles", "pyproject.toml"]

TINY = {
    "seed": 7,
    "device": "cpu",
    "base": {
        "name": "demo",
        "demo": {
            "hidden_size": 32,
            "layers": 2,
            "heads": 2,
            "vocab_size": 400,
            "context": 128,
            "pretrain_steps": 4,
            "threads": 1,
        },
    },
    "datasets": {
        "banking": {"source": "demo", "domain": "banking", "records": 120},
        "investment": {"source": "demo", "domain": "investment", "records": 120},
        "combined": {"source": "combined", "of": ["banking", "investment"]},
    },
    "defaults": {
        "adapter": {"rank": 2, "alpha": 4},
        "sft": {
            "batch_size": 8,
            "max_steps": 4,
            "max_seq_len": 96,
            "learning_rate": 5.0e-3,
            "eval_steps": 2,
            "eval_examples": 8,
            "log_steps": 1,
            "checkpoint_steps": 1,
            "threads": 1,
        },
        "reinforce": {
            "rollout_batch_size": 8,
            "total_steps": 3,
            "max_new_tokens": 8,
            "max_seq_len": 128,
            "learning_rate": 5.0e-3,
            "temperature": 1.0,
            "eval_steps": 2,
            "eval_examples": 8,
            "checkpoint_steps": 1,
            "threads": 1,
            "privacy": {"max_grad_norm": 5.0},
        },
        "privacy": {"mode": "reproducible", "max_grad_norm": 0.5, "delta": 1.0e-4},
    },
    "experts": {
        "banking_expert": {
            "dataset": "banking",
            "stages": ["sft", "reinforce"],
            "routing": {"keywords": ["bank", "deposit", "loan"]},
        },
        "investment_expert": {"dataset": "investment", "routing": {"keywords": ["portfolio", "stock", "bond"]}},
        "shared_attention": {
            "dataset": "combined",
            "adapter": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]},
            "routing": {"always_active": True},
        },
    },
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keep these tests on one worker: they share long runs, and each worker would make its own."""
    if getattr(config.option, "loadgroup", False):
        apart = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        assert not apart, f"pytest-xdist does not keep the groups of tests together: {apart[0]}"


class Project:
    """A copy of the tree in a new folder, with a configuration and a home.

    `warm` is the environment of warm starts (`warm/server.py`), which `snakemake` uses and nothing else does.
    """

    def __init__(self, folder: Path, home: Path, *, warm: dict[str, str] | None = None) -> None:
        self.folder, self.home, self.warm = folder, home, warm or {}

    def configure(self, configuration: dict, name: str = "test.yaml") -> None:
        (self.folder / "config" / name).write_text(yaml.safe_dump(configuration, sort_keys=False))

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("SEALED_EXPERTS_KEY", "PYTHONPATH")}
        return {**kept, "SEALED_EXPERTS_HOME": str(self.home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}

    def command(
        self, *arguments: str, config: str = "test.yaml", overlays: tuple[str, ...] = (), cores: int = 2
    ) -> list[str]:
        files = [f"config/{name}" for name in (config, *overlays)]
        return [
            *(sys.executable, "-m", "snakemake", "--cores", str(cores)),
            *("--configfile", *files, "--", *arguments),
        ]

    def snakemake(
        self, *arguments: str, flags: tuple[str, ...] = (), check: bool = True, seconds: float = 1800, **keywords
    ):
        command = self.command(*arguments, **keywords)
        command[3:3] = flags
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**self.warm),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake failed:\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake as the leader of its own process group, as a terminal does."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def planned(self, *arguments: str, config: str = "test.yaml") -> dict[str, set[str]]:
        """Return what a dry-run would do: {rule: {output files}}."""
        done = self.snakemake(*arguments, flags=("-n", "--quiet", "host"), config=config)
        return jobs_of(done.stdout)

    def tool(self, *arguments: str, check: bool = True, **keywords):
        """Run the `sealed-experts` command of this copy."""
        done = subprocess.run(
            [sys.executable, "-m", "sealed_experts.cli.main", *arguments],
            cwd=self.folder,
            env=self.environment(PYTHONPATH=str(self.folder / "scripts")),
            capture_output=True,
            text=True,
            check=False,
            **keywords,
        )
        if check and done.returncode:
            raise AssertionError(f"sealed-experts {arguments} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def copy(self, folder: Path) -> "Project":
        """Copy everything with its file times, so that Snakemake sees the same finished state."""
        shutil.copytree(self.folder, folder, symlinks=True, copy_function=shutil.copy2)
        return Project(folder, self.home, warm=self.warm)


def new_project(folder: Path, home: Path, *, warm: dict[str, str] | None = None) -> Project:
    folder.mkdir(parents=True)
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, folder / name)
    return Project(folder, home, warm=warm)


def jobs_of(printed: str) -> dict[str, set[str]]:
    """Return what a dry-run printed: {rule: output files}, without rules that make nothing.

    The rule of experts with other stages than the first one's counts as `evaluate_expert`.
    """
    jobs: dict[str, set[str]] = {}
    rule = None
    for line in printed.splitlines():
        words = line.strip().split(" ", 1)
        if words[0] in ("rule", "localrule", "checkpoint"):
            rule = re.sub(r"^evaluate_expert_\w+", "evaluate_expert", words[1].rstrip(":"))
        elif words[0] == "output:" and rule:
            jobs.setdefault(rule, set()).update(words[1].split(", "))
    return jobs


def stop_group(process: subprocess.Popen, number: int) -> None:
    os.killpg(process.pid, number)
    process.wait(timeout=120)


@pytest.fixture(scope="session")
def starts(tmp_path_factory):
    """The server of warm starts."""
    starts = WarmStarts(tmp_path_factory.mktemp("warm"))
    yield starts
    starts.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, starts) -> Project:
    """A finished run of the tiny configuration, in a folder with spaces in its path. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "a folder with spaces"
    project = new_project(folder, tmp_path_factory.mktemp("home"), warm=starts.environment)
    project.configure(TINY)
    project.snakemake()
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished run."""
    return finished.copy(tmp_path / "copy of it")


@pytest.fixture
def prepared(finished, tmp_path) -> Project:
    """A copy of the finished run with base and data, before any training."""
    project = finished.copy(tmp_path / "prepared")
    for name in ("experts", "packages", "moe"):
        shutil.rmtree(project.folder / "results" / name, ignore_errors=True)
    return project


@pytest.fixture(scope="session")
def world(finished, tmp_path_factory) -> Project:
    """A finished run of the configuration in docs/staleness.md. Undo what you change."""
    from tests.workflow.world import finished_world

    return finished_world(finished, tmp_path_factory)


@pytest.fixture(scope="session")
def planner(starts):
    """Makes dry-runs at half a second each."""
    return Planner(starts)
