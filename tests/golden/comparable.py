"""What two recordings must share before they can be compared: versions, and how the processor rounds."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys

from tests.golden.workplace import PINS, PORTABLE

_LIBRARIES = ("torch", "transformers", "peft", "opacus", "tokenizers", "safetensors", "numpy", "scipy", "dp-accounting")
_PROBE = """
import sys, torch
torch.set_num_threads(1)
values = torch.linspace(1e-3, 7.0, 6144).reshape(64, 96)
found = [getattr(values, name)() for name in ("sqrt", "rsqrt", "exp", "log", "tanh", "sigmoid")]
for given in (values, values.double()):
    found += [given.sqrt(), given @ given.T, given.softmax(-1), given.log_softmax(-1), given.norm(dim=1)]
for tensor in found:
    sys.stdout.buffer.write(tensor.contiguous().numpy().tobytes())
"""


def made_with() -> dict[str, str]:
    """Return the versions of everything that can change bits, and a digest of this processor's arithmetic."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "arithmetic": _arithmetic(),
        "machine": platform.machine(),
        "python": python,
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _arithmetic() -> str:
    """Return a digest of the results of functions that training uses, in the environment of the runs."""
    environment = {**os.environ, **PORTABLE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PINS)}
    done = subprocess.run([sys.executable, "-c", _PROBE], env=environment, stdout=subprocess.PIPE, check=True)
    return hashlib.sha256(done.stdout).hexdigest()[:16]
