"""What the loop asks of an objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from sealed_experts.privacy.streams import Stream
    from sealed_experts.training.batches import Batch, Example


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What an objective may be made from, once a stage has loaded it.

    Attributes:
        model: the wrapped model, with the weights that the stage starts from.
        tokenizer: the base's.
        pad_id: its padding token.
        seed: the run's public seed.
        check: raises `Interrupted` when the run was asked to stop; to be called now and then by what takes long.
        processes: how many share each logical batch.
        models: other models that it learns from, frozen, by the setting that names each (`Stage.models`).
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    pad_id: int
    seed: int
    check: Callable[[], None] = lambda: None
    processes: int = 1
    models: "Mapping[str, torch.nn.Module]" = field(default_factory=dict)


class Objective:
    """A training objective: a loss per unit of privacy, and whatever it needs around it.

    Subclasses override the two losses; the rest has defaults that do nothing. An objective calls the wrapped model,
    never its inner decoder.
    """

    def check(self, examples: "Sequence[Example]", *, path: Path) -> None:
        """Look through the training examples, read from `path`, before anything is trained.

        Raises:
            UserError: they cannot be trained on.
        """

    def check_held_out(self, examples: "Sequence[Example]", *, path: Path) -> None:
        """Look through the held-out examples, read from `path`, that validation will use.

        Raises:
            UserError: it cannot use them.
        """

    def constants(self, model: "torch.nn.Module", batch: "Batch") -> Mapping[str, Any]:
        """Return what this batch's loss needs and what has no gradient, by name: logits of a reference, advantages.

        Called without gradient, once before each `per_example_loss`, with the same batch. If the batch is padded
        (`batch.positions`), the first dimension of every tensor is the rows: an engine cuts them by unit. Other
        values are passed on unchanged.
        """
        return {}

    def per_example_loss(
        self, model: "torch.nn.Module", batch: "Batch", constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return each unit's loss, float32 [units], depending on that unit's rows alone, and figures to `note`.

        `batch.unit` says which rows belong together; `batch.by_unit` adds up their values. Run the model once, through
        `response_logits`. An engine may call this inside `vmap`, once for all units. There `batch` holds one unit and
        no examples, the weights are replaced, and no value can be read or decide what is computed. What needs
        examples or other weights belongs in `constants`.

        Returns:
            The losses, and by name figures for the log, each [units].
        """
        raise NotImplementedError

    def note(self, figures: "Mapping[str, torch.Tensor]") -> None:
        """Take the figures of a physical batch's loss, each [units]; they are functions of private records."""

    def validate(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return figures on held-out batches, without gradient, by their names in the log (`val_loss`, …).

        Args:
            check: to be called before each physical batch; may raise to give up.
        """
        raise NotImplementedError

    def prepare(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, step: int, stream: "Stream"
    ) -> "list[Batch]":
        """Do what comes before the gradient of step `step` (generate, score) and return the batches to train on.

        Step 0 is the self-check's: what could be zero by chance (an advantage) must not be, or it would check nothing.
        """
        return list(batches)

    def queries(self, batch: "Batch") -> "dict[str, torch.Tensor]":
        """Return one value in [0, 1] a unit, [units], of its rows alone, for each of the stage's `query_noise`."""
        return {}

    def observe(self, answers: Mapping[str, float]) -> None:
        """Take the queries' released means (noised, under privacy); called once a step, after the optimizer's."""

    def observed(self) -> Any:
        """Return what this process saw in the step just made, as plain data."""
        return None

    def figures(self, shares: Sequence[Any]) -> dict[str, Any]:
        """Return figures about the step just made, from what each process `observed`, for the private log."""
        return {}

    def regulariser(self, parameters: "Sequence[torch.Tensor]") -> "list[torch.Tensor] | None":
        """Return a gradient that depends on no record, added after the noise; None for none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the objective's own state, to be kept in checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds some")
