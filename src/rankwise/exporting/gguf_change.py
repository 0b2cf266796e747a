"""What an adapter changes in a GGUF file: factors by the names of tensors there, with rows in the order of rows there.

    W' = W + t s B A             a linear layer; A (R, I), B (O, R)
    W' = W + t s (B A)^T         an embedding (V, O); A (R, V), B (O, R)
    W' = W + t (m (W + s B A) / n - W)     DoRA, n the length of each row of W + s B A

with t the strength. A module that was trained whole takes the place of the base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.errors import AdapterError, some
from rankwise.models.gguf_architectures import GgufNames


@dataclass(frozen=True)
class GgufChange:
    factors: Mapping[str, Factors]
    """Of changed layers, by the name of the weight in GGUF; rank 0 is left out."""
    whole: Mapping[str, Tensor]
    """Parameters that were trained whole, in GGUF's form."""
    strength: float = 1.0

    @classmethod
    def of(cls, weights: AdapterWeights, names: GgufNames, described: str, strength: float = 1.0) -> GgufChange:
        """AdapterError, which names the layers, where GGUF has no place for some, or where they are convolutions."""
        unknown = [path for path in weights.factors if names.of(f"{path}.weight") is None]
        unknown += [path for path in weights.heads if names.of(path) is None]
        filters = [path for path, part in weights.factors.items() if part.A.ndim != 2]
        if unknown or filters:
            raise AdapterError(
                f"{described} has layers that GGUF has no place for: {some([*unknown, *filters], 4)}. Use --format "
                "peft or merged."
            )
        if weights.heads and strength != 1:
            raise AdapterError(
                f"{described} has fully trained modules (modules_to_save), which cannot be scaled; use strength 1."
            )
        factors = {
            str(names.of(f"{path}.weight")): _in_order(part, path, names)
            for path, part in weights.factors.items()
            if part.rank
        }
        whole = {str(names.of(path)): names.stored(path, value) for path, value in weights.heads.items()}
        return cls(factors, whole, strength)

    @property
    def names(self) -> set[str]:
        """Of all tensors that it changes."""
        return {*self.factors, *self.whole}

    @torch.no_grad()
    def changed(self, name: str, weight: Tensor) -> Tensor:
        """The numbers of one tensor, in float32 and in GGUF's form, with the change in them."""
        weight = self.whole.get(name, weight)
        if (part := self.factors.get(name)) is None:
            return weight
        if part.embedding:
            return torch.addmm(weight, part.A.T, part.B.T, alpha=part.scale * self.strength)
        if part.magnitude is None:
            return torch.addmm(weight, part.B, part.A, alpha=part.scale * self.strength)
        turned = torch.addmm(weight, part.B, part.A, alpha=part.scale)
        lengths = torch.linalg.vector_norm(turned, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        turned = turned * (part.magnitude / lengths)[:, None]
        return turned if self.strength == 1 else torch.lerp(weight, turned, self.strength)


def _in_order(part: Factors, path: str, names: GgufNames) -> Factors:
    """The rows of an embedding's B are not outputs of queries or keys, so its order is that of transformers."""
    magnitude = None if part.magnitude is None else names.with_rows(path, part.magnitude.float())
    B = part.B.float() if part.embedding else names.with_rows(path, part.B.float())
    return replace(part, A=part.A.float(), B=B, magnitude=magnitude)
