"""Check the chosen engine before a private run: compare it with one unit at a time."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.privacy.engines import GradientMismatch, UnitLoss, make_engine
from sealed_experts.privacy.streams import Stream

# Largest relative difference between a unit's gradient from a physical batch and the one computed alone. Padding
# alone moves float32 logits by up to 2e-6, and bfloat16 carries 8 bits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


def check_unit_gradients(
    *, engine: str, model: Any, objective: UnitLoss, batches: Sequence[Any], stream: Stream, dtype: torch.dtype
) -> float:
    """Compare an engine's gradients with those of one unit at a time, and refuse a mismatch.

    For the check, random noise is added to the adapter's weights, and removed afterwards. At LoRA's start every
    gradient of A is exactly zero, so a comparison there would find nothing.

    Args:
        engine: its name.
        batches: physical batches of real units of mixed lengths.
        dtype: the base's number format, which decides the tolerance.

    Returns:
        The largest relative difference found.

    Raises:
        GradientMismatch: the difference exceeds the tolerance of `dtype`, the engine fails, or all gradients are zero.
        UserError: the engine cannot be used with this model.
    """
    with moved(model, stream):
        # Compute the truth first: it must not depend on an engine's hooks, and its errors are not the engine's.
        truth = _gradients("one_by_one", model, objective, batches)
        try:
            measured = _gradients(engine, model, objective, batches)
        except (GradientMismatch, UserError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise GradientMismatch(f"the gradient engine `{engine}` fails on this model ({reason})") from error
    return _largest_difference(measured, truth, tolerance=TOLERANCE[dtype])


def _gradients(engine: str, model: Any, objective: UnitLoss, batches: Sequence[Any]) -> list[torch.Tensor]:
    """Return each unit's gradient, float64 [parameters]."""
    chosen = make_engine(engine, model=model, objective=objective)
    try:
        units: list[torch.Tensor] = []
        for batch in batches:
            found = chosen.per_unit(batch)
            expected = len(batch.rows_by_unit())
            if found.losses.shape != (expected,):
                raise GradientMismatch(
                    f"the objective returned losses of shape {[*found.losses.shape]} for {expected} units"
                )
            flat = torch.cat([gradient.flatten(1) for gradient in found.gradients], dim=1)
            units.extend(flat.to(torch.float64))
        return units
    finally:
        chosen.close()


def _largest_difference(measured: list[torch.Tensor], truth: list[torch.Tensor], *, tolerance: float) -> float:
    worst, compared = 0.0, False
    for unit, (got, expected) in enumerate(zip(measured, truth, strict=True)):
        norm, gap = float(expected.norm()), float((got - expected).norm())
        if norm == gap == 0.0:
            continue  # nothing to compare in this unit
        difference = gap / norm if norm else float("inf")
        if not difference <= tolerance:
            raise GradientMismatch(
                f"example {unit}: its gradient from a batch differs from the one computed alone by {difference:.2g} "
                f"of its norm {norm:.2g}; at most {tolerance:.0e} is numerical noise"
            )
        worst = max(worst, difference)
        compared = True
    if not compared:
        raise GradientMismatch("no example has a gradient: there is nothing to compare")
    return worst


@contextlib.contextmanager
def moved(model: Any, stream: Stream) -> Iterator[None]:
    """Add small noise to the trainable weights in this block: none is exactly zero, but scales stay plausible."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            values = torch.from_numpy(stream.normals("self-check", index, parameter.numel()))
            parameter.add_((0.02 * values).reshape(parameter.shape).to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
                parameter.grad = None  # a failed engine may have left one
