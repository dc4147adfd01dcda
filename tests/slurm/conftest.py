"""A SLURM cluster for tests: Debian's packages, installed where they are missing, and daemons of our own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import PROGRAMS, SBIN, Cluster

SKIP = "SEALED_EXPERTS_SKIP_SLURM"
PACKAGES = ("slurm-wlm", "munge")


def missing_programs() -> list[str]:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), SBIN])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def obstacle() -> str | None:
    """Say what keeps these tests from running here, after trying to install what is missing."""
    missing = missing_programs()
    if not missing:
        return None
    needed = f"{', '.join(missing)} missing (Debian's packages {' and '.join(PACKAGES)})"
    if shutil.which("apt-get") is None:
        return f"{needed}, and there is no apt-get to install them"
    if os.geteuid() != 0:
        return f"{needed}, and only root may install them: sudo apt-get install {' '.join(PACKAGES)}"
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"{needed}, and apt-get {command[0]} failed: {done.stderr.strip()[-300:]}"
    still = missing_programs()
    return f"{', '.join(still)} missing after apt-get install {' '.join(PACKAGES)}" if still else None


@pytest.fixture(scope="session")
def slurm() -> None:
    """What SLURM's tests need; fails with the reason where it cannot be had, unless told to skip."""
    if os.environ.get(SKIP):
        pytest.skip(f"{SKIP} is set")
    if reason := obstacle():
        pytest.fail(f"SLURM's tests cannot run: {reason}. Set {SKIP}=1 to leave them out", pytrace=False)


@pytest.fixture(scope="module")
def cluster(slurm, tmp_path_factory):
    """A running cluster of one node with one GPU. Its daemons end with the tests, however these end."""
    folder: Path = tmp_path_factory.mktemp("cluster")
    with Cluster(folder) as running:
        yield running
