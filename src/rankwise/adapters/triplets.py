"""All triplets of an adapter in two flat buffers, so that what is done to all costs a few kernels, not some a layer.

    vectors (N,)     the rows of P and Q of every part, those of one width together
    strengths (b,)   one for each triplet

The parts' own parameters become views of these, and so do their gradients: autograd adds into the flat buffers, and the
optimizer, the clipping and the importance see two tensors. `rows` gives the view of each width, (R, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rankwise.adapters.adalora import AdaLoRA
from rankwise.errors import TrainingError

Form = Literal["paper", "reference"]
SMALLEST = 1e-12


@dataclass(frozen=True)
class _Block:
    """Rows of one width. `matrices` (M, R_max) are the rows of each P or Q, with -1 where one has fewer."""

    width: int
    start: int
    count: int
    matrices: Tensor
    even: bool


class Triplets:
    def __init__(self, parts: Sequence[AdaLoRA]) -> None:
        self.parts = list(parts)
        self.vectors = nn.Parameter(torch.empty(0))
        self.strengths = nn.Parameter(torch.empty(0))
        self._lay()

    def __len__(self) -> int:
        return self.strengths.numel()

    @property
    def ranks(self) -> list[int]:
        return [part.rank for part in self.parts]

    @property
    def costs(self) -> Tensor:
        """(b,) parameters that each triplet has in the adapter that is written."""
        costs = torch.tensor([float(part.cost) for part in self.parts])
        return costs.repeat_interleave(torch.tensor(self.ranks)).to(self.strengths.device)

    def check_views(self) -> None:
        """What cuts gradients off from the buffers does so for all parts, so one is asked."""
        part = next((part for part in self.parts if part.rank), None)
        pairs = (
            [] if part is None else [(self.vectors, part.P), (self.vectors, part.Q), (self.strengths, part.strength)]
        )
        for flat, own in pairs:
            if flat.grad is None or own.grad is None or _storage(flat.grad) != _storage(own.grad):
                raise TrainingError(
                    "the gradients of these adapters are no longer in the buffers that they are trained from. Use "
                    "optimizer.zero_grad(set_to_none=False) instead of model.zero_grad(), and create TrainableAdaLora "
                    "after the model has been moved to its device and number format."
                )

    def rows(self, values: Tensor) -> list[Tensor]:
        """A flat buffer (N,) as one view (R, width) for each width."""
        return [
            values[block.start : block.start + block.count * block.width].view(block.count, block.width)
            for block in self._blocks
        ]

    def per_triplet(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Means over each row of P and of Q, both (b,), of a flat buffer."""
        means = torch.cat([rows.mean(1) for rows in self.rows(values)])
        return means[self._row_of_p], means[self._row_of_q]

    @torch.no_grad()
    def add_penalty(self, weight: float, form: Form) -> None:
        """The gradient of the orthogonality penalty, in closed form, onto that of the loss.

        paper       weight * sum of |M M^T - 1|^2 over all P and Q:     4 weight (M M^T - 1) M
        reference   weight * mean of |M M^T - 1| over them:            2 weight / (2 n) (M M^T - 1) M / |M M^T - 1|
        """
        if not weight or not len(self):
            return
        gradient = self.vectors.grad
        assert gradient is not None, "gradients are views, and there from the beginning"
        for block, rows, into in zip(self._blocks, self.rows(self.vectors), self.rows(gradient), strict=True):
            padded, valid = _matrices(block, rows)
            excess = padded @ padded.mT - torch.diag_embed(valid.to(rows.dtype))
            if form == "paper":
                excess *= 4 * weight
            else:
                size = torch.linalg.matrix_norm(excess, keepdim=True).clamp_min(SMALLEST)
                excess *= weight / len(self.parts) / size
            if block.even:
                into.view(padded.shape).baddbmm_(excess, padded)
            else:
                into.index_add_(0, block.matrices[valid], (excess @ padded)[valid])

    @torch.no_grad()
    def retire(self, alive: Tensor) -> None:
        """`alive` (b,) bool. A strength of zero can grow again."""
        self.strengths.mul_(alive)

    @torch.no_grad()
    def shrink(self, alive: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Remove the triplets that are not `alive` from parameters, gradients and the optimizer's averages."""
        rows = torch.zeros(sum(block.count for block in self._blocks), dtype=torch.bool, device=alive.device)
        rows[self._row_of_p], rows[self._row_of_q] = alive, alive
        flat = torch.cat([
            mask[:, None].expand(-1, block.width).flatten()
            for mask, block in zip(rows.split([block.count for block in self._blocks]), self._blocks, strict=True)
        ])  # fmt: skip
        for parameter, mask in ((self.vectors, flat), (self.strengths, alive)):
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = value[mask]
        for part, mask in zip(self.parts, alive.split(self.ranks), strict=True):
            for name in ("P", "strength", "Q"):
                setattr(part, name, nn.Parameter(getattr(part, name)[mask].clone()))
        self._lay()

    @torch.no_grad()
    def _lay(self) -> None:
        """Build the flat buffers from what the parts hold, and make the parts' parameters views of them."""
        widths = sorted({width for part in self.parts for width in (part.P.shape[1], part.Q.shape[1])})
        blocks: list[_Block] = []
        held: list[Tensor] = []
        places: dict[tuple[int, str], int] = {}
        begins: dict[tuple[int, str], int] = {}
        start = first = 0
        for width in widths:
            members = [
                (index, role, getattr(part, role))
                for index, part in enumerate(self.parts)
                for role in ("P", "Q")
                if getattr(part, role).shape[1] == width
            ]
            for (index, role, _), place in zip(members, _starts([m.shape[0] for _, _, m in members]), strict=True):
                places[index, role], begins[index, role] = first + place, start + place * width
            held += [matrix.detach().flatten() for _, _, matrix in members]
            blocks.append(_block(width, start, [matrix.shape[0] for _, _, matrix in members], members[0][2].device))
            start, first = start + blocks[-1].count * width, first + blocks[-1].count
        self._blocks = blocks
        device = self.parts[0].strength.device
        self._row_of_p, self._row_of_q = (
            torch.cat([torch.arange(places[index, role], places[index, role] + part.rank)
                       for index, part in enumerate(self.parts)]).to(device)
            for role in ("P", "Q")
        )  # fmt: skip
        self._fill(self.vectors, torch.cat(held))
        self._fill(self.strengths, torch.cat([part.strength.detach() for part in self.parts]))
        self._bind(begins)

    @staticmethod
    def _fill(parameter: nn.Parameter, values: Tensor) -> None:
        parameter.grad = None
        parameter.data = values
        parameter.grad = torch.zeros_like(values)

    def _bind(self, begins: dict[tuple[int, str], int]) -> None:
        """`begins[part, role]` is where that part's matrix begins in the buffer."""
        before = 0
        for index, part in enumerate(self.parts):
            for role in ("P", "Q"):
                _view(getattr(part, role), self.vectors, begins[index, role])
            _view(part.strength, self.strengths, before)
            before += part.rank


def _storage(values: Tensor) -> int:
    return values.untyped_storage().data_ptr()


def _view(parameter: nn.Parameter, flat: nn.Parameter, begin: int) -> None:
    assert flat.grad is not None, "it was filled before"
    shape, size = parameter.shape, parameter.numel()
    parameter.grad = None
    parameter.data = flat.data[begin : begin + size].view(shape)
    parameter.grad = flat.grad[begin : begin + size].view(shape)


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _block(width: int, start: int, ranks: list[int], device: torch.device) -> _Block:
    most = max(ranks)
    first = torch.tensor(_starts(ranks))[:, None] + torch.arange(most)
    matrices = torch.where(torch.arange(most) < torch.tensor(ranks)[:, None], first, -1).to(device)
    return _Block(width, start, sum(ranks), matrices, even=len(set(ranks)) == 1)


def _matrices(block: _Block, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M, R_max, width) with rows of zeros where a matrix has fewer, and which are none of those."""
    valid = block.matrices >= 0
    if block.even:
        return rows.view(*block.matrices.shape, block.width), valid
    padded = torch.cat([rows, rows.new_zeros(1, block.width)])
    return padded[block.matrices], valid
