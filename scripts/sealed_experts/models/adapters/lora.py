"""Low-rank adaptation: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from sealed_experts.models.adapters import INPUTS, OUTPUTS, ModuleAdapter, is_target
from sealed_experts.models.architectures import FLATTENED
from sealed_experts.settings.fields import setting


class LowRank(ModuleAdapter):
    """The base class of kinds that PEFT trains with its LoRA layers. `marks` distinguishes them."""

    rank: int = setting("Rank of the update.", default=8, ge=1, le=4096)
    alpha: float = setting("Scale of the update: alpha / rank.", default=16, gt=0, le=1_000_000)

    rank_setting: ClassVar[str] = "rank"
    config_keys: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "lora_alpha",
        "target_modules": "target_modules",
    }
    config_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "lora_dropout": (0, 0.0),
        "init_lora_weights": (True,),
        "bias": ("none",),
        "megatron_core": ("megatron.core",),
        "qalora_group_size": (16,),
        "rank_pattern": ({},),
        "alpha_pattern": ({},),
        "loftq_config": ({}, None),
        **dict.fromkeys(
            (
                "alora_invocation_tokens",
                "arrow_config",
                "corda_config",
                "eva_config",
                "exclude_modules",
                "kasa_config",
                "layer_replication",
                "layers_pattern",
                "layers_to_transform",
                "lora_ga_config",
                "megatron_config",
                "modules_to_save",
                "monteclora_config",
                "target_parameters",
                "trainable_token_indices",
                "use_bdlora",
                "velora_config",
            ),
            (None,),
        ),
        **dict.fromkeys(
            ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_qalora", "use_rslora"),
            (False,),
        ),
    }

    def tensors(self, module: str) -> Mapping[str, tuple[int | str, ...]]:
        """Return A, from the module's inputs to the rank, and B, from the rank to the module's outputs."""
        return {"lora_A.weight": (self.rank, INPUTS), "lora_B.weight": (OUTPUTS, self.rank)}


class Lora(LowRank):
    """A product of two narrow matrices, added to each target module's own."""

    kind: Literal["lora"] = setting("Low-rank adaptation.", default="lora")

    marks: ClassVar[Mapping[str, Any]] = {"peft_type": "LORA", "use_dora": False}
    converts_to: ClassVar[tuple[str, ...]] = ("GGUF adapter",)
    serving: ClassVar[Mapping[str, str]] = {
        "PEFT": "",
        "vLLM": "`max_lora_rank` at least the rank",
        "llama.cpp": "as a GGUF adapter",
        "Cloudflare Workers AI": "rank up to 32, bases of mistral, gemma or llama",
    }

    def engine(self, base: Mapping[str, Any]) -> str:
        """Return `hooks`, if the rows of the linear layers are those of the batch, even on a quantised base."""
        flattened = FLATTENED.get(str(base.get("model_type")), ())
        exact = not any(is_target(module, target) for module in flattened for target in self.target_modules)
        return "hooks" if exact else super().engine(base)
