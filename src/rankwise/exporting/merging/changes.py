"""What becomes of one stored tensor: nothing, a low-rank change, DoRA's rescaling, a combination that is laid out, or a
module that was trained whole.

Rows are those of the stored weight, whose width is everything but its first dimension. A linear layer and a convolution
store their outputs as rows, so a change is B A; GPT-2's Conv1D and embeddings store their inputs, so it is (B A)^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rankwise.adapters.base_layers import is_transposed, weight_of
from rankwise.adapters.combining import Combining, Laid, Weighted, cut, cut_laid, joined, laid
from rankwise.adapters.weights import Factors
from rankwise.models.tensor_files import pieces

Rows = Callable[[int, int], Tensor]
"""Rows of the base's weight, in the format that a change is added in."""


class Change(Protocol):
    def add_to(self, rows: Tensor, first: int) -> None:
        """Change rows of the base (n, width), of which the first is row `first`, in place."""
        ...


@dataclass(frozen=True)
class Product:
    """left (rows, R) times right (R, width)."""

    left: Tensor
    right: Tensor

    def add_to(self, rows: Tensor, first: int) -> None:
        if self.right.shape[0]:
            rows.addmm_(self.left[first : first + len(rows)], self.right)


@dataclass(frozen=True)
class LaidOut:
    """Ties or dare, times a strength."""

    change: Laid
    strength: float

    def add_to(self, rows: Tensor, first: int) -> None:
        rows.add_(self.change.rows(first, first + len(rows)).to(rows.dtype), alpha=self.strength)


@dataclass(frozen=True)
class Rescaled:
    """DoRA: share of the way from W to m (W + s B A) / |W + s B A|; `stretch` is m / |...| of each output."""

    product: Product
    stretch: Tensor
    share: float
    by_columns: bool
    """Whether the outputs are the columns of the stored weight."""

    def add_to(self, rows: Tensor, first: int) -> None:
        turned = rows.clone()
        self.product.add_to(turned, first)
        stretch = self.stretch if self.by_columns else self.stretch[first : first + len(rows), None]
        rows.lerp_(turned.mul_(stretch), self.share) if self.share != 1 else rows.copy_(turned.mul_(stretch))


@dataclass(frozen=True)
class Whole:
    """A module that was trained whole: `share` of the way from the base's value, if it has one, to `value`."""

    value: Tensor
    share: float = 1.0

    def add_to(self, rows: Tensor, first: int) -> None:
        own = self.value.reshape(self.value.shape[0] if self.value.ndim else 1, -1)
        own = own[first : first + len(rows)].to(rows.dtype)
        rows.lerp_(own, self.share) if self.share != 1 else rows.copy_(own)


def product_of(host: nn.Module, B: Tensor, A: Tensor, working: torch.dtype) -> Product:
    """Of a change B A (O, I) in the shape of the host's weight."""
    left, right = (A.T, B.T) if is_transposed(host) else (B, A)
    return Product(left.to(working).contiguous(), right.to(working).contiguous())


def change_of(
    host: nn.Module, name: str, parts: Weighted, combining: Combining, strength: float, working: torch.dtype, base: Rows
) -> Change:
    """`parts` are this layer's factors in each adapter that changes it. Only DoRA reads the base here."""
    first, _ = parts[0]
    if first.magnitude is not None:
        assert len(parts) == 1, "DoRA stands alone, which the plan checks"
        return _rescaled(host, first, parts[0][1] * strength, working, base)
    if combining.lays_out:
        change = _laid(host, name, parts, combining, working)
        if not combining.cuts:
            return LaidOut(change, strength)
        rows = weight_of(host).shape
        cutting = cut_laid(change, rows[0], list(pieces(tuple(rows))))
        return Product((cutting.B * strength).to(working).contiguous(), cutting.A.to(working).contiguous())
    B, A = joined([(part, weight * strength) for part, weight in parts], working)
    if combining.cuts:
        cutting = cut(B, A, combining)
        B, A = cutting.B, cutting.A
    return product_of(host, B, A, working)


def _laid(
    host: nn.Module, name: str, parts: Weighted, combining: Combining, working: torch.dtype
) -> Laid:  # fmt: skip
    pairs: list[tuple[Tensor, Tensor]] = []
    for part, _ in parts:
        product = product_of(host, *joined([(part, 1.0)], working), working)
        pairs.append((product.left, product.right))
    return laid(combining, name, pairs, [weight for _, weight in parts])


def _rescaled(host: nn.Module, part: Factors, share: float, working: torch.dtype, base: Rows) -> Rescaled:
    product, by_columns = product_of(host, *joined([(part, 1.0)], working), working), is_transposed(host)
    shape, squares = tuple(weight_of(host).shape), []
    for first, last in pieces(shape):
        rows = base(first, last)
        product.add_to(rows, first)
        squares.append(rows.square_().sum(0 if by_columns else 1))
    lengths = (torch.stack(squares).sum(0) if by_columns else torch.cat(squares)).sqrt_()
    assert part.magnitude is not None, "asked by the caller"
    stretch = part.magnitude.to(working) / lengths.clamp_min(torch.finfo(working).tiny)
    return Rescaled(product, stretch, share, by_columns)
