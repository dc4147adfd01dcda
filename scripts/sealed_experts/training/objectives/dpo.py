"""Direct preference optimization: of two answers to a prompt, make the better one more likely than the worse one.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (2023).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sealed_experts.settings.fields import setting
from sealed_experts.training.frozen_model import FrozenModel
from sealed_experts.training.objective import Objective
from sealed_experts.training.objectives import MOST_STEPS, Stage

if TYPE_CHECKING:
    import torch

    from sealed_experts.data.templates import Encoded
    from sealed_experts.privacy.streams import Stream
    from sealed_experts.training.batches import Batch
    from sealed_experts.training.objective import Materials


class Dpo(Stage):
    """Direct preference optimization on pairs of answers, a better and a worse one."""

    learning_rate: float = setting("AdamW's learning rate.", default=5e-5, gt=0, public=True)
    weight_decay: float = setting("AdamW's decoupled weight decay.", default=0.0, ge=0, public=True)
    batch_size: int = setting(
        "Logical batch: pairs per step (under privacy, the expected number).", default=8, ge=1, public=True
    )
    max_steps: int = setting("Optimizer steps.", default=1000, ge=1, le=MOST_STEPS)
    beta: float = setting(
        "β of the loss: how strongly the adapter is kept near the reference. A lower β lets it move further.",
        default=0.1,
        gt=0,
        le=1e3,
        public=True,
    )
    reference: FrozenModel | None = setting(
        "The adapter to compare likelihoods with; by default the one that the stage starts from.", default=None
    )

    records: ClassVar[tuple[str, ...]] = ("pair",)
    monitored: ClassVar[Mapping[str, bool]] = {"val_loss": True, "val_accuracy": False, "val_margin": False}
    watched: ClassVar[Mapping[str, tuple[str, str]]] = {
        "Loss": ("loss", "loss"),
        "Held-out": ("val_loss", "validation loss"),
        "Accuracy": ("val_accuracy", "held-out accuracy"),
    }
    order: ClassVar[int] = 2

    def defect(self, rows: "Sequence[Encoded]") -> str:
        """Return why a pair teaches nothing: no room for an answer, or equal answers once they are cut."""
        chosen, rejected = rows
        if chosen.response_tokens == 0:
            return "its prompt leaves no room for an answer"
        return "its answers are equal once they are cut" if chosen.ids == rejected.ids else ""

    def objective(self, materials: "Materials") -> Objective:
        """Return the preference loss."""
        return DirectPreference(settings=self, materials=materials)

    def models(self) -> Mapping[str, FrozenModel]:
        """Return the reference, if it is another adapter."""
        return {} if self.reference is None else {"reference": self.reference}

    def summary(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return accuracy and margin on held-out pairs, before and after training."""
        validation = [line for line in state["history"] if "val_loss" in line]
        before, after = validation[0], state["kept"] or validation[-1]
        return {
            f"{name}_{when}": line[f"val_{name}"]
            for name in ("accuracy", "margin")
            for when, line in (("before", before), ("after", after))
        }


class DirectPreference(Objective):
    """A pair's loss is -log σ(m), with the margin m = β · [(log π - log ref)(chosen) - (log π - log ref)(rejected)].

    An answer's log-likelihood is the sum over its tokens. Both rows of a pair form one unit, and stay together.
    """

    def __init__(self, *, settings: Dpo, materials: "Materials") -> None:
        from sealed_experts.models.attachment import trainable_parameters

        self._settings = settings
        self._other = materials.models.get("reference")
        self._parameters = trainable_parameters(materials.model)
        # Copied here, before a resumed run loads its own weights.
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        self._margins: list[float] = []

    def prepare(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, step: int, stream: "Stream"
    ) -> "list[Batch]":
        """Clear the margins of the previous step."""
        self._margins = []
        return list(batches)

    def constants(self, model: "torch.nn.Module", batch: "Batch") -> Mapping[str, Any]:
        """Return for each row its log-likelihood under the reference, and its sign in the margin, both [rows]."""
        import torch

        from sealed_experts.data.templates import CHOSEN
        from sealed_experts.training.policy import other_weights

        if self._other is not None:
            with torch.no_grad():
                reference = _log_likelihoods(self._other, batch)
        else:
            with other_weights(self._parameters, self._start):
                reference = _log_likelihoods(model, batch)
        signs = [1.0 if example.part == CHOSEN else -1.0 for example in batch.examples]
        return {"reference": reference, "signs": torch.tensor(signs, device=reference.device)}

    def per_example_loss(
        self, model: "torch.nn.Module", batch: "Batch", constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return each pair's loss and its margin, [units]."""
        import torch

        margins = self._pair_margins(model, batch, constants)
        return -torch.nn.functional.logsigmoid(margins), {"margin": margins}

    def note(self, figures: "Mapping[str, torch.Tensor]") -> None:
        """Keep the margins for the log."""
        self._margins += figures["margin"].tolist()

    def validate(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return means over held-out pairs: loss, margin, and the share in the right order (ties count half)."""
        import torch

        margins: list[torch.Tensor] = []
        with torch.no_grad():
            for batch in batches:
                check()
                margins.append(self._pair_margins(model, batch, self.constants(model, batch)).double().cpu())
        values = torch.cat(margins)
        return {
            "val_loss": float(-torch.nn.functional.logsigmoid(values).mean()),
            "val_accuracy": float((values > 0).double().mean() + (values == 0).double().mean() / 2),
            "val_margin": float(values.mean()),
        }

    def observed(self) -> list[float]:
        """Return the margins of this process's pairs."""
        return self._margins

    def figures(self, shares: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Return the step's mean margin; None after an empty draw."""
        margins = [margin for share in shares for margin in share]
        return {"margin": sum(margins) / len(margins) if margins else None}

    def _pair_margins(self, model: "torch.nn.Module", batch: "Batch", constants: Mapping[str, Any]) -> "torch.Tensor":
        gained = _log_likelihoods(model, batch) - constants["reference"]
        return self._settings.beta * batch.by_unit(constants["signs"] * gained)


def _log_likelihoods(model: "torch.nn.Module", batch: "Batch") -> "torch.Tensor":
    """Return the log-likelihood of each row's answer, float32 [rows]."""
    from sealed_experts.training.response import response_logits

    response = response_logits(model, batch)
    return -response.row_sums(response.losses())
