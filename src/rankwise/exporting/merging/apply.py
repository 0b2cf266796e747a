"""A plan carried out: each tensor read through a memory map, changed piece by piece and written behind the last one.

Work is done by one thread, on a piece of a million numbers that stays in the processor's cache. What does not change is
copied byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankwise.errors import AdapterError
from rankwise.exporting.merging.changes import Change, Whole, change_of
from rankwise.exporting.merging.number_formats import FORMATS, NumberFormat
from rankwise.exporting.merging.plan import MergePlan, Planned
from rankwise.exporting.merging.rounding import Rounding, RoundingMeter
from rankwise.models.tensor_files import MappedFiles, StoredTensor, Written, header_of, pieces, writing
from rankwise.runs.records import Callback, ProgressUpdate

COPIED_AT_ONCE = 8 << 20
"""Bytes."""
Meter = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Applied:
    files: tuple[Written, ...]
    roundings: tuple[Rounding, ...]


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

    def pieces_of(self, tensor: Planned, meter: Meter | None = None) -> Iterator[Tensor]:
        """In the order of the file, each in the format that is stored; valid until the next one is asked for."""
        if tensor.copied:
            assert tensor.source is not None, "it is copied from there"
            yield from self._copied(tensor.source)
            return
        form = FORMATS[tensor.code]
        change = self._change(tensor, form.working)
        for first, last in pieces(tensor.shape):
            rows = self._base(tensor, form.working, first, last)
            before = rows.clone() if meter else rows
            if change is not None:
                change.add_to(rows, first)
            stored = rows.to(form.stored)
            if meter:
                meter(before, rows, stored)
            yield stored

    def exact_pieces_of(self, tensor: Planned) -> Iterator[tuple[Tensor, Tensor]]:
        """Base and sum in float64."""
        change = self._change(tensor, torch.float64)
        for first, last in pieces(tensor.shape):
            rows = self._base(tensor, torch.float64, first, last)
            before = rows.clone()
            if change is not None:
                change.add_to(rows, first)
            yield before, rows

    def _copied(self, source: StoredTensor) -> Iterator[Tensor]:
        for start in range(0, source.nbytes, COPIED_AT_ONCE):
            yield self._files.raw(source, start, min(start + COPIED_AT_ONCE, source.nbytes))
            self._files.forget(source)

    def _base(self, tensor: Planned, working: torch.dtype, first: int, last: int) -> Tensor:
        """A copy of the base's rows; zeros where the base has no such tensor."""
        if tensor.source is None:
            width = torch.Size(tensor.shape[1:]).numel() if tensor.shape else 1
            return torch.zeros(last - first, width, dtype=working)
        if tensor.packed:
            return self._plan.inputs.trained.value(tensor.source.name)[first:last].to(working, copy=True)
        rows = self._files.rows(tensor.source, FORMATS[tensor.source.dtype].stored, first, last).to(working, copy=True)
        self._files.forget(tensor.source)
        return rows

    def _change(self, tensor: Planned, working: torch.dtype) -> Change | None:
        if tensor.whole is not None:
            return Whole(tensor.whole, tensor.share)
        if tensor.layer is None:
            return None
        inputs = self._plan.inputs
        return change_of(
            inputs.hosts[tensor.layer], f"{tensor.layer}.weight", inputs.layers[tensor.layer], inputs.combining,
            inputs.strength, working, lambda first, last: self._base(tensor, working, first, last),
        )  # fmt: skip


def write_weights(plan: MergePlan, folder: Path, callback: Callback) -> Applied:
    """Write the plan's files into a folder, each flushed to the disk, and measure what rounding costs."""
    written, roundings, done = [], [], 0
    with one_thread():
        for shard in plan.shards:
            files = MappedFiles()
            values = Values(plan, files)
            header = header_of(((one.key, one.code, one.shape) for one in shard.tensors), shard.metadata)
            with writing(folder / shard.name, header) as writer:
                for tensor in shard.tensors:
                    meter = None if tensor.copied else RoundingMeter(tensor.key)
                    for piece in values.pieces_of(tensor, None if meter is None else meter.add):
                        writer.add(piece)
                    if meter is not None:
                        _check_finite(meter, tensor)
                    if meter is not None and (tensor.layer is not None or tensor.packed):
                        roundings.append(_measured(plan, tensor, meter, files))
                    done += tensor.nbytes
                    callback(ProgressUpdate("Merging", done, plan.nbytes, "bytes"))
                written.append(writer.finish())
            files.close()
    return Applied(tuple(written), tuple(roundings))


def _measured(plan: MergePlan, tensor: Planned, meter: RoundingMeter, files: MappedFiles) -> Rounding:
    """A sum in float32 that is stored in float32 has its error in the sum, so it is computed again."""
    form: NumberFormat = FORMATS[tensor.code]
    if form.code != "F32" or plan.inputs.combining.lays_out:
        return meter.result
    values, again = Values(plan, files), RoundingMeter(tensor.key)
    for stored, (before, exact) in zip(values.pieces_of(tensor), values.exact_pieces_of(tensor), strict=True):
        again.add(before, exact, stored)
    return again.result


def _check_finite(meter: RoundingMeter, tensor: Planned) -> None:
    if not meter.finite:
        form = FORMATS[tensor.code]
        largest = (
            f"; {form.name} has no numbers above {torch.finfo(form.stored).max:,.0f}" if form.code == "F16" else ""
        )
        raise AdapterError(
            f'the merged "{tensor.key}" would contain NaN or infinity{largest}. Nothing was written; use --dtype '
            "float32 or a smaller --strength."
        )
