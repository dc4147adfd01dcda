"""Settings of supervised fine-tuning."""

from collections.abc import Iterator
from typing import Any

from sealed_experts.settings.fields import setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake
from sealed_experts.training.stages import MOST_STEPS, Stage

_PRODUCT = ("micro_batch_size", "gradient_accumulation")


class Sft(Stage):
    """Supervised fine-tuning."""

    batch_size: int | None = setting(
        "Logical batch: examples a step (under privacy, the expected number). Default 8.",
        default=None,
        ge=1,
        public=True,
    )
    micro_batch_size: int | None = setting(
        "With gradient_accumulation, another way to give the logical batch: their product.", default=None, ge=1
    )
    gradient_accumulation: int | None = setting("See micro_batch_size.", default=None, ge=1)
    max_steps: int = setting("Optimizer steps.", default=2000, ge=1, le=MOST_STEPS)

    @property
    def logical_batch(self) -> int:
        """Examples an optimizer step: `batch_size`, or the product of the two other settings, or 8."""
        if self.micro_batch_size is not None and self.gradient_accumulation is not None:
            return self.micro_batch_size * self.gradient_accumulation
        return self.batch_size or 8

    @property
    def steps(self) -> int:
        """`max_steps`."""
        return self.max_steps

    def numbers(self) -> dict[str, Any]:
        """Return what decides numbers, with one spelling of the logical batch."""
        numbers = {key: value for key, value in super().numbers().items() if key not in _PRODUCT}
        return numbers | {"batch_size": self.logical_batch}

    def mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield what does not fit, half a product among it."""
        yield from super().mistakes(layers)
        missing = [key for key in _PRODUCT if getattr(self, key) is None]
        if len(missing) == 1 and not layers.doubled(self.feature):
            other = next(key for key in _PRODUCT if key not in missing)
            yield Mistake(
                (*layers.locate(self.feature, other)[:-1], missing[0]),
                f"it is missing beside {other}; the logical batch is the product of the two",
                involves=(layers.locate(self.feature, other),),
            )
