"""How much each triplet matters, from the gradients that training makes anyway (Zhang et al. 2023, section 3.2).

    I = |w dL/dw|                        sensitivity of each number
    average(I)   with beta1              smoothed over steps
    average(|I - average(I)|)  beta2     how uncertain it is
    s = average(I) * average(|...|)
    score = s(strength) + mean s(row of P) + mean s(row of Q)

Both averages start at zero. By default w is the value after the optimizer step and the gradient that of before, as in
the authors' code: a strength that was set to zero would otherwise have no sensitivity for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.adapters.triplets import Triplets

IN_CACHE = 1 << 17
"""Numbers at a time on a processor: six passes over half a megabyte cost less than six over all there is."""


@dataclass
class Importance:
    """The averages over vectors (N,) and strengths (b,), as `Triplets` has them."""

    beta1: float
    beta2: float
    averages: tuple[Tensor, Tensor]
    uncertainties: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, triplets: Triplets, beta1: float, beta2: float) -> Importance:
        flat = (triplets.vectors, triplets.strengths)
        first, second = (tuple(torch.zeros_like(values.data) for values in flat) for _ in range(2))
        return cls(beta1, beta2, (first[0], first[1]), (second[0], second[1]))

    @torch.no_grad()
    def observe(self, triplets: Triplets, apart: Sequence[Tensor] | None = None) -> None:
        """A step with a gradient that is not finite changes nothing; asking so does not make the host wait. `apart` are
        the parts of both gradients that say nothing of the rows, and are left out."""
        sums = [values.grad.sum() for values in (triplets.vectors, triplets.strengths) if values.grad is not None]
        taken = torch.stack(sums).sum().isfinite().to(sums[0].dtype)
        flat = (triplets.vectors, triplets.strengths)
        without = (None, None) if apart is None else apart
        for values, other, averages, uncertainties in zip(
            flat, without, self.averages, self.uncertainties, strict=True
        ):
            assert values.grad is not None, "gradients are views, and there from the beginning"
            gradients = values.grad if other is None else values.grad - other
            at_once = IN_CACHE if values.device.type == "cpu" else values.numel()
            buffers = (buffer.split(max(1, at_once)) for buffer in (values, gradients, averages, uncertainties))
            for value, gradient, average, uncertainty in zip(*buffers, strict=True):
                sensitivity = (value * gradient).abs_().nan_to_num_(0.0, 0.0, 0.0)
                average.lerp_(sensitivity, taken * (1 - self.beta1))
                uncertainty.lerp_(sensitivity.sub_(average).abs_(), taken * (1 - self.beta2))

    @torch.no_grad()
    def scores(self, triplets: Triplets) -> Tensor:
        """(b,)"""
        of_vectors, of_strengths = (a * u for a, u in zip(self.averages, self.uncertainties, strict=True))
        of_p, of_q = triplets.per_triplet(of_vectors)
        return of_strengths + of_p + of_q
