"""The Gaussian mechanism on per-unit gradients: clip, sum, add keyed noise, divide by the expected batch size.

Abadi et al., "Deep Learning with Differential Privacy" (2016), algorithm 1, with Poisson sampling. The clipped sum and
the noise are float64, so their rounding error (about 1e-16 relative) is far below the noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sealed_experts.privacy.plan import PrivacyPlan
from sealed_experts.privacy.streams import Stream


@dataclass(frozen=True)
class Release:
    """What a step releases about its draw: the gradient, per parameter, and the means of the other queries by name."""

    gradients: list[torch.Tensor]
    queries: dict[str, float]


class GradientMechanism:
    """Collects the per-unit gradients of one logical batch and releases their noised mean.

    It also answers the plan's other queries. Each is a sum over the same draw, with one value in [0, 1] per unit.
    """

    def __init__(self, *, plan: PrivacyPlan, parameters: Sequence[torch.Tensor], stream: Stream) -> None:
        self._plan = plan
        self._stream = stream
        self._shapes = [tuple(parameter.shape) for parameter in parameters]
        self._device = parameters[0].device
        self._sums = self._zeros()
        self._answers = self._no_answers()

    def add(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Clip each unit's gradient to the plan's norm and add it to the sum.

        Args:
            gradients: per parameter, [units, *shape of the parameter].

        Returns:
            The norms before clipping, float64 of shape [units]. A norm that is not finite means that zeros replaced
            this unit's gradient. The norms are private: they depend on the records.
        """
        wide = [gradient.to(torch.float64) for gradient in gradients]
        norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in wide]).sum(0).sqrt()
        finite = torch.isfinite(norms)
        factors = torch.where(finite, (self._plan.max_grad_norm / norms).clamp(max=1.0), 0.0)
        for total, gradient in zip(self._sums, wide, strict=True):
            # Multiplying by zero would not help: zero times NaN is NaN.
            rows = gradient.flatten(1)
            rows = torch.where(finite[:, None], rows, 0.0)
            total += (factors @ rows).reshape(total.shape)
        return norms

    def ask(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one value per unit, [units], to the sum of each of the plan's queries.

        A value is clipped to [0, 1], and NaN counts as 0, so a unit changes a sum by at most 1.

        Raises:
            ValueError: the names are not those of the plan's queries. The ledger counts exactly those.
        """
        if values.keys() != self._plan.queries.keys():
            raise ValueError(f"the plan has the queries {sorted(self._plan.queries)}, not {sorted(values)}")
        for name, given in values.items():
            clipped = torch.nan_to_num(given.to(torch.float64), nan=0.0, posinf=0.0, neginf=0.0).clamp(0.0, 1.0)
            self._answers[name] += float(clipped.sum())

    def pool(self, total: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]) -> None:
        """Replace the sums by `total` of them: the sums over all processes that share this batch.

        The noise is added afterwards, once. It is the same in every process.
        """
        answers = torch.tensor(list(self._answers.values()), dtype=torch.float64, device=self._device)
        *self._sums, answers = total([*self._sums, answers])
        self._answers = dict(zip(self._answers, answers.tolist(), strict=True))

    def release(self, *, step: int) -> Release:
        """Return the noised means over this step's units, with gradients in float32, and reset the sums.

        A mean divides by the plan's expected batch size, never by the number of drawn units: an empty draw releases
        pure noise.
        """
        scale = self._plan.noise_multiplier * self._plan.max_grad_norm
        count = sum(total.numel() for total in self._sums)
        noise = torch.from_numpy(self._stream.normals("noise", step, count)).to(self._device)
        released, start = [], 0
        for total in self._sums:
            piece = noise[start : start + total.numel()].reshape(total.shape)
            start += total.numel()
            released.append(((total + scale * piece) / self._plan.expected_batch_size).to(torch.float32))
        answers = {
            name: (total + self._plan.queries[name] * float(self._stream.normals(f"query/{name}", step, 1)[0]))
            / self._plan.expected_batch_size
            for name, total in self._answers.items()
        }
        self.discard()
        return Release(released, answers)

    def discard(self) -> None:
        """Drop everything added since the last release."""
        self._sums = self._zeros()
        self._answers = self._no_answers()

    def _no_answers(self) -> dict[str, float]:
        return dict.fromkeys(self._plan.queries, 0.0)

    def _zeros(self) -> list[torch.Tensor]:
        return [torch.zeros(shape, dtype=torch.float64, device=self._device) for shape in self._shapes]


def sum_by_unit(gradients: Sequence[torch.Tensor], unit: torch.Tensor) -> list[torch.Tensor]:
    """Add up the rows of each unit, so that a unit of several rows is clipped once.

    It also works inside `vmap`, where the gradients are batched over units and `unit` is not.

    Args:
        gradients: per parameter, [rows, *shape].
        unit: [rows], the unit of each row as 0, 1, … within this physical batch.

    Returns:
        Per parameter, [units, *shape].
    """
    units = int(unit.max()) + 1
    if units == unit.numel() and torch.equal(unit, torch.arange(units, device=unit.device)):
        return list(gradients)
    return [
        torch.zeros((units, *rows.shape[1:]), dtype=rows.dtype, device=rows.device).index_add(0, unit, rows)
        for rows in gradients
    ]
