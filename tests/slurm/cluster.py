"""A SLURM cluster of one node and one GPU, real but for the GPU, in a folder of its own.

Nothing outside that folder is written, and neither root nor control groups are needed: the daemons run as whoever
calls, and /dev/null stands for the GPU's device. Needs `munged`, `slurmctld` and `slurmd` (Debian: munge, slurm-wlm).
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SBIN = "/usr/sbin"  # where Debian keeps daemons; not on every user's PATH
ACCOUNT = "testing"
GPU = "a100"
_GUARD = Path(__file__).with_name("guard.py")

_SLURM_CONF = """
ClusterName=testing
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MailProg=/bin/true
# What the node claims to have is believed: a test asks for more memory than a laptop has.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=15
MinJobAge=600
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=512000 Gres=gpu:{gpu}:1 State=UNKNOWN
PartitionName=light Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=heavy Nodes={host} MaxTime=INFINITE State=UP
"""


class Cluster:
    """Starts and stops the daemons, and asks the cluster about its jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """Return what a process needs to be on this cluster's login node."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        path = os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", os.defpath), SBIN])
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} failed: {done.stderr}{self._logs()}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`, such as JobState and TresPerJob."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def stop(self) -> None:
        """End every job and every daemon; safe to call twice."""
        if len(self._daemons) == 3 and all(daemon.poll() is None for daemon in self._daemons):
            self.run("scancel", f"--user={getpass.getuser()}", check=False)
            self._wait(lambda: not self.run("squeue", "--noheader", check=False).strip(), seconds=30)
        while self._daemons:
            daemon = self._daemons.pop()
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if self._guard is not None:
            self._guard.communicate()  # its input ends, and with it whatever is left
            self._guard = None

    def _start(self) -> None:
        folder = self.folder
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir(parents=True, mode=0o755)
        # Whatever ends these tests, SIGKILL too, ends the guard's input.
        self._guard = subprocess.Popen(
            [sys.executable, str(_GUARD), str(folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        self._write_configuration()
        self._write_commands()
        self._daemon(
            "munged",
            "--foreground",
            "--force",  # a temporary folder's parents are anybody's
            f"--key-file={key}",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        )
        self._wait_for((folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        self._daemon("slurmd", "-D", "-f", str(folder / "slurm.conf"))
        self._wait_for(lambda: self.run("sinfo", "--noheader", "--format=%T", check=False).split()[:1] == ["idle"])

    def _write_configuration(self) -> None:
        values = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "user": getpass.getuser(),
            "controller_port": _free_port(),
            "node_port": _free_port(),
            "gpu": GPU,
        }
        (self.folder / "slurm.conf").write_text(_SLURM_CONF.format(**values))
        (self.folder / "gres.conf").write_text(f"Name=gpu Type={GPU} File=/dev/null\n")

    def _write_commands(self) -> None:
        """Write what would be installed system-wide on a cluster."""
        # Snakemake's executor takes SLURM_CONF out of a job's environment: on a cluster /etc/slurm says the same.
        self._write_command("srun", f'SLURM_CONF="{self.folder}/slurm.conf" exec {shutil.which("srun")} "$@"')
        # The list of accounts is in a database that this cluster does not have.
        self._write_command("sacctmgr", f"echo {ACCOUNT}")

    def _write_command(self, name: str, line: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def _daemon(self, name: str, *arguments: str) -> None:
        path = shutil.which(name, path=self.environment()["PATH"])
        assert path, f"{name} is not installed"
        with open(self.folder / f"{name}.out", "wb") as output:
            process = subprocess.Popen(
                [path, *arguments],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons.append(process)

    def _wait_for(self, condition) -> None:
        if not self._wait(condition, seconds=60):
            raise AssertionError(f"the cluster does not start:\n{self._logs()}")

    def _wait(self, condition, *, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline or any(daemon.poll() is not None for daemon in self._daemons):
                return False
            time.sleep(0.2)
        return True

    def _logs(self) -> str:
        names = ("munged.out", "slurmctld.out", "slurmctld.log", "slurmd.out", "slurmd.log")
        paths = [path for name in names if (path := self.folder / name).is_file()]
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
