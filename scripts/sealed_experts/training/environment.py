"""What a run's numbers depend on besides its settings, and the fingerprint that names a run.

The same noise applied to other floats would be a second release, so whatever can move a float in its last bit is part
of the fingerprint: device, library versions, dtype, how batches are cut, threads.
"""

import importlib.metadata
import os
import platform
from typing import Any

import torch

from sealed_experts.files.digests import digest_of

LIBRARIES = ("torch", "transformers", "peft", "opacus", "tokenizers", "numpy", "scipy")


def numeric_environment(
    *, device: torch.device, dtype: torch.dtype, token_budget: int, threads: int, gradient_checkpointing: bool
) -> dict[str, Any]:
    """Return everything outside the settings that can change a result's last bit."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "accelerator": accelerator,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "dtype": str(dtype).removeprefix("torch."),
        "token_budget": token_budget,
        "threads": threads,
        "processes": 1,
        "gradient_checkpointing": gradient_checkpointing,
    }


def make_deterministic(*, threads: int) -> None:
    """Fix the number of threads and forbid operations whose result varies between runs."""
    # cuBLAS reads this when it starts; without it its results may vary between streams.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def fingerprint(*, subject: dict[str, Any], environment: dict[str, Any]) -> str:
    """Return the name of a run: a digest of what it computes (`subject`) and of its numeric environment."""
    return digest_of({"subject": subject, "environment": environment})
