"""Supervised fine-tuning: the mean negative log-likelihood over the response tokens of each example."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sealed_experts.errors import UserError
from sealed_experts.settings.fields import setting
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake
from sealed_experts.training.objective import Objective
from sealed_experts.training.objectives import MOST_STEPS, Stage

if TYPE_CHECKING:
    import torch

    from sealed_experts.training.batches import Batch, Example
    from sealed_experts.training.objective import Materials

_PRODUCT = ("micro_batch_size", "gradient_accumulation")


class Sft(Stage):
    """Supervised fine-tuning."""

    batch_size: int | None = setting(
        "Logical batch: examples per step (under privacy, the expected number). Default 8.",
        default=None,
        ge=1,
        public=True,
    )
    micro_batch_size: int | None = setting(
        "Another way to give the logical batch: it is micro_batch_size · gradient_accumulation.", default=None, ge=1
    )
    gradient_accumulation: int | None = setting("See micro_batch_size.", default=None, ge=1)
    max_steps: int = setting("Optimizer steps.", default=2000, ge=1, le=MOST_STEPS)

    revision: ClassVar[int] = 2
    metrics_file: ClassVar[str] = "training_metrics.json"

    def objective(self, materials: "Materials") -> Objective:
        """Return next-token prediction on responses."""
        return SupervisedFineTuning(max_seq_len=self.max_seq_len)

    @property
    def logical_batch(self) -> int:
        """Examples per optimizer step: `batch_size`, or the product of the two other settings, or 8."""
        if self.micro_batch_size is not None and self.gradient_accumulation is not None:
            return self.micro_batch_size * self.gradient_accumulation
        return self.batch_size or 8

    def numbers(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, with the logical batch in one form."""
        numbers = {key: value for key, value in super().numbers().items() if key not in _PRODUCT}
        return numbers | {"batch_size": self.logical_batch}

    def mistakes(self, layers: Layers) -> Iterator[Mistake]:
        """Yield settings that do not fit together, such as one factor of the batch without the other."""
        yield from super().mistakes(layers)
        missing = [key for key in _PRODUCT if getattr(self, key) is None]
        if len(missing) == 1 and not layers.doubled(self.feature):
            other = next(key for key in _PRODUCT if key not in missing)
            yield Mistake(
                (*layers.locate(self.feature, other)[:-1], missing[0]),
                f"it is missing beside {other}; the logical batch is the product of the two",
                involves=(layers.locate(self.feature, other),),
            )


class SupervisedFineTuning(Objective):
    """Next-token prediction on responses; prompt and padding positions have no loss."""

    def __init__(self, *, max_seq_len: int) -> None:
        self._max_seq_len = max_seq_len

    def check(self, examples: "Sequence[Example]", *, path: Path) -> None:
        """Refuse data in which no record has an answer to learn from; warn if only some records have none."""
        silent = sum(example.response_tokens == 0 for example in examples)
        if silent == len(examples):
            raise UserError(
                f"{path}: no record's prompt leaves room for an answer within sft.max_seq_len {self._max_seq_len}: "
                "raise it"
            )
        if silent:
            print(f"WARNING: {silent} prompts fill max_seq_len and teach nothing", flush=True)

    def per_example_loss(
        self, model: "torch.nn.Module", batch: "Batch", constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return the mean loss over the response tokens of each row (0 without any), added up by unit, [units].

        The model's own `.loss` is a mean over the tokens of the whole batch. With it, one example's gradient would
        depend on another example's length.
        """
        from sealed_experts.training.response import response_logits

        response = response_logits(model, batch)
        return batch.by_unit(response.row_means(response.losses())), {}

    def validate(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return `val_loss`: the mean loss over all response tokens of `batches`, in nats; NaN if there are none."""
        from sealed_experts.training.response import mean_response_loss

        return {"val_loss": mean_response_loss(model, batches, check=check)}
