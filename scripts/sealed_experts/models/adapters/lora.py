"""Low-rank adaptation: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022)."""

from typing import TYPE_CHECKING, Literal

from sealed_experts.models.adapters import ModuleAdapter
from sealed_experts.settings.fields import setting

if TYPE_CHECKING:
    from peft import PeftConfig


class Lora(ModuleAdapter):
    """A product of two narrow matrices, added to each target module's own."""

    kind: Literal["lora"] = setting("Low-rank adaptation.", default="lora")
    rank: int = setting("Rank of the update.", default=8, ge=1, le=4096)
    alpha: float = setting("Scale of the update: alpha / rank.", default=16, gt=0, le=1_000_000)

    @property
    def lora_rank(self) -> int:
        """`rank`."""
        return self.rank

    def peft_config(self, *, base_name: str | None = None, revision: str | None = None) -> "PeftConfig":
        """Return PEFT's configuration of this adapter."""
        from peft import LoraConfig

        alpha = int(self.alpha) if self.alpha.is_integer() else self.alpha
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            bias="none",
            target_modules=sorted(self.target_modules),
            base_model_name_or_path=base_name,
            revision=revision,
        )
