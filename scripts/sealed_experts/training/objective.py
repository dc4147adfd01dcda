"""The interface between the loop and an objective."""

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
    """What a stage has loaded, to make an objective from.

    Attributes:
        model: the wrapped model, with the weights that the stage starts from.
        tokenizer: the base's tokenizer.
        pad_id: its padding token.
        seed: the run's public seed.
        token_budget: most tokens of a physical batch, including padding.
        check: raises `Interrupted` when the run was asked to stop; call it regularly during long work.
        processes: how many processes share each logical batch.
        models: frozen models that the stage learns from, by the setting that names each (`Stage.models`).
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    pad_id: int
    seed: int
    token_budget: int
    check: Callable[[], None] = lambda: None
    processes: int = 1
    models: "Mapping[str, torch.nn.Module]" = field(default_factory=dict)


class Objective:
    """A training objective: a loss per unit of privacy, and what this loss needs.

    Subclasses override `per_example_loss` and `validate`; the other methods do nothing by default. An objective calls
    the wrapped model, never its inner decoder.
    """

    def check(self, examples: "Sequence[Example]", *, path: Path) -> None:
        """Check the training examples, read from `path`, before training starts.

        Raises:
            UserError: the objective cannot train on them.
        """

    def constants(self, model: "torch.nn.Module", batch: "Batch") -> Mapping[str, Any]:
        """Return, by name, what this batch's loss needs but has no gradient, such as logits of a reference.

        It is called without gradient, once before each `per_example_loss`, with the same batch. If the batch is padded
        (it has `positions`), the first dimension of every tensor must be the rows, because an engine cuts them by unit.
        Other values are passed on unchanged.
        """
        return {}

    def per_example_loss(
        self, model: "torch.nn.Module", batch: "Batch", constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return each unit's loss, float32 [units], which may depend only on that unit's rows, and figures to `note`.

        `batch.unit` says which rows belong together; `batch.by_unit` adds up their values. Run the model once, through
        `response_logits`. An engine may call this method inside `vmap`, once for all units. Then `batch` holds one unit
        and no examples, and the weights are replaced. No value can be read there, so no value can decide a branch. What
        needs examples or other weights belongs in `constants`.

        Returns:
            The losses, and figures for the log by name, each [units].
        """
        raise NotImplementedError

    def note(self, figures: "Mapping[str, torch.Tensor]") -> None:
        """Receive the figures of a physical batch's loss, each [units]; they are functions of private records."""

    def validate(
        self, model: "torch.nn.Module", batches: "Sequence[Batch]", *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return figures on held-out batches, computed without gradient, by their names in the log (`val_loss`, …).

        Args:
            check: call it before each physical batch; it may raise to stop.
        """
        raise NotImplementedError

    def prepare(
        self, model: "torch.nn.Module", examples: "Sequence[Example]", *, step: int, stream: "Stream"
    ) -> "list[Example]":
        """Do the work before the gradient of step `step` (generate, score) and return the examples to train on.

        Step 0 is the self-check. For it, no factor of the loss (such as an advantage) may be zero by chance: then it
        would check nothing.
        """
        return list(examples)

    def made_up(self, rows: "Sequence[Example]", *, vocabulary: int) -> "list[Example]":
        """Return a made-up unit as `prepare` would return a real one, for a check of the shapes of passes.

        Args:
            rows: the rows of one unit: random tokens, with a prompt and an answer.
            vocabulary: how many tokens the model knows.
        """
        return list(rows)

    def queries(self, batch: "Batch") -> "dict[str, torch.Tensor]":
        """Return, for each name in the stage's `query_noise`, one value in [0, 1] per unit, [units].

        A unit's value may depend only on that unit's rows.
        """
        return {}

    def observe(self, answers: Mapping[str, float]) -> None:
        """Receive the released means of the queries (noised, under privacy), once per step, after the optimizer."""

    def observed(self) -> Any:
        """Return what this process saw in the last step, as plain data."""
        return None

    def figures(self, shares: Sequence[Any]) -> dict[str, Any]:
        """Return figures about the last step, from what each process `observed`, for the private log."""
        return {}

    def regulariser(self, parameters: "Sequence[torch.Tensor]") -> "list[torch.Tensor] | None":
        """Return a gradient that depends on no record, or None. The loop adds it after the noise."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the objective's own state, which checkpoints keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but the checkpoint holds one")
