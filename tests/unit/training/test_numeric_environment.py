"""What a run's numbers depend on: it is fixed, or part of the fingerprint."""

import os

import pytest
import torch

from sealed_experts.models.adapters import KINDS
from sealed_experts.training.environment import make_deterministic, numeric_environment
from sealed_experts.training.objectives import STAGES


def described():
    return numeric_environment(
        device=torch.device("cpu"),
        dtype=torch.float32,
        token_budget=1,
        threads=1,
        gradient_checkpointing=False,
        features=[STAGES["sft"], KINDS["lora"]],
        engine="hooks",
    )


@pytest.fixture
def _imprecise(monkeypatch):
    """Set the state that TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 gives when torch is loaded."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.mark.usefixtures("_imprecise")
def test_the_environment_chooses_neither_precision_nor_workspace():
    """A bug: TF32 and the user's workspace setting stayed on, and neither was in the fingerprint."""
    make_deterministic(threads=torch.get_num_threads())
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    "name",
    [
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "NVIDIA_TF32_OVERRIDE",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "DNNL_DEFAULT_FPMATH_MODE",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
        "MKL_CBWR",
        "OMP_DYNAMIC",
        "GLIBC_TUNABLES",
    ],
)
def test_a_variable_that_moves_floats_is_part_of_the_run_where_it_is_set(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    without = described()
    assert name not in without["kernels"]
    monkeypatch.setenv(name, "1")
    assert described() == {**without, "kernels": {**without["kernels"], name: "1"}}
