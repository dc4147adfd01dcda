"""Where the recorded runs happen: a copy of the tree, a home with constant keys, a fixed environment."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.workflow.conftest import new_project

HERE = Path(__file__).parent
CONFIGURATION = HERE / "configuration.yaml"
PINS = HERE / "pins"
# Use kernels that every x86-64 processor with AVX2 has; with the pins, all such processors give the same bits.
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_SECONDS = 1800


class Workplace:
    """A copy of the tree to run in."""

    def __init__(self, folder: Path) -> None:
        """Copy the tree into `folder`, which must not exist, with the configuration and its files."""
        self.tree, self.home, self.pins = folder / "tree", folder / "home", folder / "pins.txt"
        new_project(self.tree, self.home)
        shutil.copytree(HERE / "own", self.tree / "own")
        shutil.copy2(HERE / "own" / "own_reward.py", self.tree)
        self.configure(yaml.safe_load(CONFIGURATION.read_text()))
        self.pins.touch()
        self._make_home(folder)

    def configure(self, configuration: dict, name: str = "golden.yaml") -> None:
        """Write a configuration file."""
        (self.tree / "config" / name).write_text(yaml.safe_dump(configuration, sort_keys=False))

    def tool(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the copy's `sealed-experts`.

        Raises:
            RuntimeError: it failed, and `check` is true.
        """
        return self._run(str(Path(sys.executable).parent / "sealed-experts"), *arguments, check=check)

    def snakemake(self, *arguments: str, name: str = "golden.yaml") -> subprocess.CompletedProcess[str]:
        """Run Snakemake with a configuration; it may fail."""
        return self._run(sys.executable, "-m", "snakemake", *arguments, "--configfile", f"config/{name}", check=False)

    def _run(self, *command: str, check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.tree,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def _environment(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            **PORTABLE,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "SOURCE_DATE_EPOCH": "1700000000",
            "SEALED_EXPERTS_HOME": str(self.home),
            "GOLDEN_PINS": str(self.pins),
            "PYTHONPATH": os.pathsep.join([str(PINS), str(self.tree / "scripts")]),
        }

    def _make_home(self, folder: Path) -> None:
        """Write the publisher's key and the key that names private data, and trust the publisher."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"golden publisher").digest())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.home.mkdir(mode=0o700)
        (self.home / "keys").mkdir(mode=0o700)
        for path, content in (
            (self.home / "keys" / "publisher.pem", pem),
            (self.home / "owner.key", hashlib.sha256(b"golden owner").hexdigest().encode() + b"\n"),
        ):
            path.write_bytes(content)
            path.chmod(0o600)
        public = str(folder / "publisher.pub")
        self.tool("keys", "export", "--output", public)
        self.tool("keys", "trust", public)
