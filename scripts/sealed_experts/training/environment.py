"""The numeric environment of a run (what its numbers depend on besides settings), and the fingerprint of a run.

The same noise on other floats would be a second release. So everything that can change the last bit of a float is part
of the fingerprint: device, library versions, dtype, how batches are cut, threads, processes.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from sealed_experts.features import Feature
from sealed_experts.files.digests import digest_of
from sealed_experts.training.numeric_code import code_digest

LIBRARIES = ("torch", "transformers", "peft", "opacus", "tokenizers", "numpy", "scipy", "dp-accounting")
# Variables that make PyTorch 2.13, its math libraries or OpenMP choose other kernels, precision, or splits of a sum.
KERNEL_VARIABLES = (
    *(
        f"{library}_{name}"
        for library in ("ONEDNN", "DNNL")  # oneDNN reads both names
        for name in ("MAX_CPU_ISA", "CPU_ISA_HINTS", "DEFAULT_FPMATH_MODE")
    ),
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_DISABLE_FAST_MM",
    "MKL_NUM_STRIPES",
    "MKL_DOMAIN_NUM_THREADS",
    "OMP_DYNAMIC",
    "OMP_THREAD_LIMIT",
    "TORCH_LINEAR_FLATTEN_3D",
    "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "TORCH_MKLDNN_MATMUL_MIN_SIZE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "DISABLE_ADDMM_CUDA_LT",
    "CUBLASLT_WORKSPACE_SIZE",
    "NVIDIA_TF32_OVERRIDE",
    "GLIBC_TUNABLES",
)


def numeric_environment(
    *,
    device: torch.device,
    dtype: torch.dtype,
    token_budget: int,
    threads: int,
    gradient_checkpointing: bool,
    features: Iterable[type[Feature]],
    engine: str | None,
    processes: int = 1,
) -> dict[str, Any]:
    """Return everything outside the settings that can change the last bit of a result.

    Args:
        features: the features that the run uses: its stage, its adapter, its reward.
        engine: name of the gradient engine; None without privacy.
    """
    features = list(features)
    modules = [feature.__module__.partition(".")[2] for feature in features]
    libraries = [*LIBRARIES, *(name for feature in features for name in feature.libraries)]
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "accelerator": accelerator,
        "machine": platform.machine(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ},
        "code": code_digest([*modules, *([f"privacy.engines.{engine}"] if engine else [])]),
        "python": platform.python_version(),  # rewards use its Unicode tables
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
        "dtype": str(dtype).removeprefix("torch."),
        "token_budget": token_budget,
        "threads": threads,
        "processes": processes,
        "gradient_checkpointing": gradient_checkpointing,
    }


def without_processes(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a numeric environment without the number of processes."""
    return {name: value for name, value in environment.items() if name != "processes"}


def _processor() -> str:
    """Return the processor's model: for math libraries the instruction set alone does not decide the kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def make_deterministic(*, threads: int) -> None:
    """Fix the number of threads and the precision, and forbid operations whose result varies between runs.

    Call it before anything is computed on a GPU.
    """
    # cuBLAS reads this when it starts. Without it, or with other sizes, results may differ.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_num_threads(threads)
    # Full float32 precision, whatever the environment variables say.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    # Filling new memory only helps to find operations that read it before they write it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def fingerprint(
    *, subject: dict[str, Any], environment: dict[str, Any], continues: dict[str, Any] | None = None
) -> str:
    """Return the name of a run: a digest of what it computes (`subject`), its numeric environment, and the run that it
    continues, if any.
    """
    run = {"subject": subject, "environment": environment}
    return digest_of(run if continues is None else {**run, "continues": continues})
