"""What recordings must have in common to be compared: versions, and how this processor rounds."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys

from tests.golden.workplace import PORTABLE

_LIBRARIES = ("torch", "transformers", "peft", "opacus", "tokenizers", "safetensors", "numpy", "scipy", "dp-accounting")
# The square root and the logarithm of MKL, whatever MKL_CBWR says, begin on some processors with an approximation
# (RSQRTPS, RCPPS) that each maker of processors has its own of; it moves the last bit of the result.
_PROBE = """
import sys, torch
torch.set_num_threads(1)
values = torch.linspace(1e-3, 7.0, 6144).reshape(64, 96)
for given in (values, values.double()):
    found = [getattr(given, name)() for name in ("sqrt", "rsqrt", "exp", "log", "tanh", "sigmoid", "erf")]
    found += [given @ given.T, given.softmax(-1), given.log_softmax(-1), given.norm(dim=1), given.pow(1.5)]
    for tensor in found:
        sys.stdout.buffer.write(tensor.contiguous().numpy().tobytes())
"""


def made_with() -> dict[str, str]:
    """Return the versions of what decides bits, and a digest of this processor's arithmetic."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "arithmetic": _arithmetic(),
        "machine": platform.machine(),
        "python": python,
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _arithmetic() -> str:
    environment = {**os.environ, **PORTABLE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _PROBE], env=environment, stdout=subprocess.PIPE, check=True)
    return hashlib.sha256(done.stdout).hexdigest()[:16]
