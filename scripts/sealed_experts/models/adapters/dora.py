"""Weight-decomposed low-rank adaptation: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from sealed_experts.models.adapters import OUTPUTS
from sealed_experts.models.adapters.lora import LowRank
from sealed_experts.settings.fields import setting


class Dora(LowRank):
    """LoRA for the direction of each target module's matrix, and a separate magnitude for each output."""

    kind: Literal["dora"] = setting("Weight-decomposed low-rank adaptation.", default="dora")

    order: ClassVar[int] = 1
    marks: ClassVar[Mapping[str, Any]] = {"peft_type": "LORA", "use_dora": True}

    def tensors(self, module: str) -> Mapping[str, tuple[int | str, ...]]:
        """Return LoRA's two matrices and the magnitudes."""
        return {**super().tensors(module), "lora_magnitude_vector": (OUTPUTS,)}
