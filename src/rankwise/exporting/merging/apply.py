"""A plan carried out: each tensor read through a memory map, changed piece by piece and written behind the last one.

Work is done by one thread, on a piece of a million numbers that stays in the processor's cache. What becomes of a
stored tensor is nothing, a low-rank change, DoRA's rescaling, a combination that is laid out, or a module that was
trained whole. What does not change is copied byte for byte.

Rows are those of the stored weight, whose width is everything but its first dimension. A linear layer and a convolution
store their outputs as rows, so a change is B A; GPT-2's Conv1D and embeddings store their inputs, so it is (B A)^T.

The one rounding of a merge is measured for every layer while it is written:

    largest      the largest |stored - exact| / |exact| of a number
    of change    |stored - exact| / |D| in Frobenius norms, with D the change: 0.1 means that a tenth of it is noise
    change       |D| / |W|

`exact` is the sum in the format that it was computed in; for a float32 base it is computed again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.adapters.base_layers import is_transposed, weight_of
from rankwise.adapters.combining import Laid, cut, cut_laid, joined, laid
from rankwise.adapters.weights import Factors
from rankwise.base.tensor_files import MappedFiles, StoredTensor, WrittenFile, header_of, open_writer, pieces
from rankwise.errors import AdapterError
from rankwise.exporting.merging.inputs import Inputs
from rankwise.exporting.merging.plan import FORMATS, MergePlan, PlannedTensor
from rankwise.runs.records import Callback, ProgressUpdate

Rows = Callable[[int, int], Tensor]
"""Rows of the base's weight, in the format that a change is added in."""
Change = Callable[[Tensor, int], object]
"""Changes rows of the base (n, width) in place, of which the first is the row of this number."""
COPIED_AT_ONCE = 8 << 20
"""Bytes."""


def product(left: Tensor, right: Tensor) -> Change:
    """Adds left (rows, R) times right (R, width)."""

    def add(rows: Tensor, first: int) -> None:
        if right.shape[0]:
            rows.addmm_(left[first : first + len(rows)], right)

    return add


def laid_out(change: Laid, strength: float) -> Change:
    """Adds ties or dare, times a strength."""
    return lambda rows, first: rows.add_(change.rows(first, first + len(rows)).to(rows.dtype), alpha=strength)


def _go(rows: Tensor, to: Tensor, share: float) -> Tensor:
    return rows.lerp_(to, share) if share != 1 else rows.copy_(to)


def in_rows(base_layer: nn.Module, B: Tensor, A: Tensor, working: torch.dtype) -> tuple[Tensor, Tensor]:
    """The factors (rows, R) and (R, width) of a change B A (O, I) in the shape of the host's weight."""
    left, right = (A.T, B.T) if is_transposed(base_layer) else (B, A)
    return left.to(working).contiguous(), right.to(working).contiguous()


def change_of(inputs: Inputs, path: str, working: torch.dtype, base: Rows) -> Change:
    """The change of a layer by all adapters that have factors of it. Only DoRA reads the base here."""
    base_layer, parts, combining, strength = inputs.hosts[path], inputs.layers[path], inputs.combining, inputs.strength
    first, _ = parts[0]
    if first.magnitude is not None:
        assert len(parts) == 1, "DoRA stands alone, which the plan checks"
        return _rescaled(base_layer, first, parts[0][1] * strength, working, base)
    if combining.lays_out:
        pairs = [in_rows(base_layer, *joined([(part, 1.0)], working), working) for part, _ in parts]
        change = laid(combining, f"{path}.weight", pairs, [weight for _, weight in parts])
        if not combining.cuts:
            return laid_out(change, strength)
        rows = weight_of(base_layer).shape
        cutting = cut_laid(change, rows[0], list(pieces(tuple(rows))))
        return product((cutting.B * strength).to(working).contiguous(), cutting.A.to(working).contiguous())
    B, A = joined([(part, weight * strength) for part, weight in parts], working)
    if combining.cuts:
        cutting = cut(B, A, combining)
        B, A = cutting.B, cutting.A
    return product(*in_rows(base_layer, B, A, working))


def _rescaled(base_layer: nn.Module, part: Factors, share: float, working: torch.dtype, base: Rows) -> Change:
    """DoRA: goes a share of the way from W to m (W + s B A) / |W + s B A|, with |...| of each output."""
    add = product(*in_rows(base_layer, *joined([(part, 1.0)], working), working))
    by_columns, squares = is_transposed(base_layer), []
    for first, last in pieces(tuple(weight_of(base_layer).shape)):
        rows = base(first, last)
        add(rows, first)
        squares.append(rows.square_().sum(0 if by_columns else 1))
    lengths = (torch.stack(squares).sum(0) if by_columns else torch.cat(squares)).sqrt_()
    assert part.magnitude is not None, "asked by the caller"
    stretch = part.magnitude.to(working) / lengths.clamp_min(torch.finfo(working).tiny)

    def rescale(rows: Tensor, first: int) -> None:
        turned = rows.clone()
        add(turned, first)
        _go(rows, turned.mul_(stretch if by_columns else stretch[first : first + len(rows), None]), share)

    return rescale


@dataclass(frozen=True)
class Rounding:
    name: str
    largest: float
    of_change: float
    change: float


@dataclass
class RoundingMeter:
    """Adds up pieces of one tensor."""

    name: str
    finite: bool = True
    _largest: float = 0.0
    _sums: dict[str, float] = field(default_factory=lambda: {"error": 0.0, "change": 0.0, "base": 0.0})

    def add(self, base: Tensor, exact: Tensor, stored: Tensor) -> None:
        """Rows before and after, in the format that was computed in, and after rounding."""
        error = stored.to(exact.dtype, copy=True).sub_(exact)  # in one format it is the very tensor that is written
        self.finite &= bool(torch.isfinite(error).all())
        self._sums["error"] += _energy(error)
        self._sums["base"] += _energy(base)
        self._sums["change"] += _energy(exact - base)
        relative = error.div_(exact).abs_().nan_to_num_(0.0, 0.0, 0.0)  # 0 / 0 where a number is zero
        self._largest = max(self._largest, float(relative.max())) if relative.numel() else self._largest

    @property
    def result(self) -> Rounding:
        error, change, base = (math.sqrt(self._sums[name]) for name in ("error", "change", "base"))
        return Rounding(
            self.name, self._largest, error / change if change else 0.0, change / base if base else 0.0
        )  # fmt: skip


def _energy(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that wait for pieces of this size cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Values:
    """The values of planned tensors, piece by piece."""

    def __init__(self, plan: MergePlan, files: MappedFiles) -> None:
        self._plan, self._files = plan, files

    def copied(self, source: StoredTensor) -> Iterator[Tensor]:
        for start in range(0, source.nbytes, COPIED_AT_ONCE):
            yield self._files.raw(source, start, min(start + COPIED_AT_ONCE, source.nbytes))
            self._files.forget(source)

    def changed(self, tensor: PlannedTensor, meter: RoundingMeter) -> Iterator[Tensor]:
        """In the order of the file, each in the format that is stored. A sum in float32 that is stored in float32 has
        its error in the sum, so it is computed again to be measured."""
        form, lays_out = FORMATS[tensor.code], self._plan.inputs.combining.lays_out
        exactly = torch.float64 if form.code == "F32" and tensor.has_change and not lays_out else form.working
        changes = {working: self._change(tensor, working) for working in (form.working, exactly)}
        for first, last in pieces(tensor.shape):
            base, merged = self._rows(tensor, form.working, first, last, changes)
            stored = merged.to(form.stored)
            exact = (base, merged) if exactly == form.working else self._rows(tensor, exactly, first, last, changes)
            meter.add(*exact, stored)
            yield stored

    def _rows(
        self, tensor: PlannedTensor, working: torch.dtype, first: int, last: int,
        changes: Mapping[torch.dtype, Change | None],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rows `first` to `last` - 1 of a tensor: those of the base, and the same with the change added."""
        rows = self._base(tensor, working, first, last)
        base = rows.clone()
        if (change := changes[working]) is not None:
            change(rows, first)
        return base, rows

    def _base(self, tensor: PlannedTensor, working: torch.dtype, first: int, last: int) -> Tensor:
        """A copy of the base's rows; zeros where the base has no such tensor."""
        if tensor.source is None:
            width = torch.Size(tensor.shape[1:]).numel() if tensor.shape else 1
            return torch.zeros(last - first, width, dtype=working)
        if tensor.packed:
            return self._plan.inputs.trained.value(tensor.source.name)[first:last].to(working, copy=True)
        rows = self._files.rows(tensor.source, FORMATS[tensor.source.dtype].stored, first, last).to(working, copy=True)
        self._files.forget(tensor.source)
        return rows

    def _change(self, tensor: PlannedTensor, working: torch.dtype) -> Change | None:
        if tensor.full_weight is not None:
            # A module that was trained whole: goes a share of the way from the base's value, if it has one, to this one
            value = tensor.full_weight
            values = value.reshape(value.shape[0] if value.ndim else 1, -1)
            return lambda rows, first: _go(rows, values[first : first + len(rows)].to(rows.dtype), tensor.share)
        if tensor.layer is None:
            return None
        base = partial(self._base, tensor, working)
        return change_of(self._plan.inputs, tensor.layer, working, base)


def write_weights(plan: MergePlan, folder: Path, callback: Callback) -> tuple[list[WrittenFile], list[Rounding]]:
    """Write the plan's files into a folder, each flushed to the disk, and measure what rounding costs."""
    written, roundings, done = list[WrittenFile](), list[Rounding](), 0
    with one_thread():
        for shard in plan.shards:
            files = MappedFiles()
            values = Values(plan, files)
            header = header_of(((one.key, one.code, one.shape) for one in shard.tensors), shard.metadata)
            with open_writer(folder / shard.name, header) as writer:
                for tensor in shard.tensors:
                    meter = RoundingMeter(tensor.key)
                    copied = tensor.source if tensor.copied else None
                    for piece in values.changed(tensor, meter) if copied is None else values.copied(copied):
                        writer.add(piece)
                    _check_finite(meter, tensor)
                    if tensor.has_change:
                        roundings.append(meter.result)
                    done += tensor.nbytes
                    callback(ProgressUpdate("Merging", done, plan.nbytes, "bytes"))
                written.append(writer.finish())
            files.close()
    return written, roundings


def _check_finite(meter: RoundingMeter, tensor: PlannedTensor) -> None:
    if not meter.finite:
        form = FORMATS[tensor.code]
        largest = (
            f"; {form.name} has no numbers above {torch.finfo(form.stored).max:,.0f}" if form.code == "F16" else ""
        )
        raise AdapterError(
            f'the merged "{tensor.key}" would contain NaN or infinity{largest}. Nothing was written; use --dtype '
            "float32 or a smaller --strength."
        )
