"""Proof of a merge without a forward pass: each tensor is merged again from base and adapters and compared by bytes.

    exact       every byte is what the merge of these adapters into this base gives
    rounding    only numbers that were rounded to a neighbour differ, as happens on a processor with other instructions
    different   anything else: the list names each tensor, how many of its numbers differ and by how many steps

A step is from one number of the format to the next. Base and adapters must have the hashes that were recorded, or there
is nothing to compare with, which is an error. Comparing outputs instead would not see a small wrong layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rankwise.adapters.formats.pickles import SUFFIXES
from rankwise.errors import RunError
from rankwise.exporting.merging.apply import Values, header_of_shard, one_thread
from rankwise.exporting.merging.inputs import Inputs, Options, open_inputs
from rankwise.exporting.merging.number_formats import FORMATS
from rankwise.exporting.merging.plan import MergePlan, Planned, Shard, plan_merge
from rankwise.exporting.merging.record import MergeRecord, adapter_hashes, read_record
from rankwise.models.tensor_files import MappedFiles, StoredTensor, header_of
from rankwise.runs.manifest import peak_rss
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.system.files import sha256_of

WHOLE = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True)
class Differing:
    tensor: str
    numbers: int
    of: int
    steps: int
    """The most steps that a number is away; 0 where the tensor holds no floating-point numbers."""


LOADED = (".safetensors", ".gguf", ".py", *SUFFIXES)
"""Endings of files that another program may load or run in the place of the merged weights."""


@dataclass(frozen=True)
class Proof:
    folder: str
    outcome: Literal["exact", "rounding", "different"]
    tensors: int
    bytes: int
    differing: tuple[Differing, ...]
    files: tuple[str, ...]
    """Files beside the weights, and headers, that are not what was recorded."""
    processor_seconds: float
    peak_bytes: int
    """Of the whole process, the interpreter and torch included."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise merge --prove --json` prints."""
        return asdict(self)


def prove(
    folder: Path, adapters: Sequence[str] = (), base_model: str | None = None, callback: Callback = silent
) -> Proof:
    """`adapters` and `base_model` say where they are now; otherwise they are looked for where they were."""
    began = time.process_time()
    record = read_record(folder)
    inputs = _inputs(record, adapters, base_model, callback)
    _check_hashes(record, inputs)
    plan = plan_merge(inputs, record.dtype)
    weights = {shard.name for shard in plan.shards}
    files = [
        name for name, recorded in record.files.items()
        if name not in weights and not ((folder / name).is_file() and sha256_of(folder / name) == recorded)
    ]  # fmt: skip
    files += sorted(file.name for file in folder.iterdir() if file.suffix in LOADED and file.name not in weights)
    differing: list[Differing] = []
    done = 0
    with one_thread():
        for shard in plan.shards:
            if not _same_header(folder / shard.name, shard):
                files.append(shard.name)
                continue
            differing += _compared(plan, shard, folder, callback, done)
            done += sum(tensor.nbytes for tensor in shard.tensors)
    near = not files and all(1 <= one.steps <= 1 for one in differing)
    return Proof(
        str(folder), "exact" if near and not differing else "rounding" if near else "different", len(plan.tensors),
        done, tuple(differing), tuple(files), time.process_time() - began, peak_rss(),
    )  # fmt: skip


def _inputs(record: MergeRecord, adapters: Sequence[str], base_model: str | None, callback: Callback) -> Inputs:
    if adapters and len(adapters) != len(record.adapters):
        raise RunError(f"the merge was made of {len(record.adapters)} adapters, and {len(adapters)} are named.")
    folder = record.base_folder if Path(record.base_folder).is_dir() else record.base
    return open_inputs(
        Options(
            list(adapters) or [one.folder for one in record.adapters], [one.weight for one in record.adapters],
            record.combining, record.strength, base_model or folder, force_result=True, base_is_known=True,
            onto=record.base_quantized or "original",
        ),
        callback,
    )  # fmt: skip


def _check_hashes(record: MergeRecord, inputs: Inputs) -> None:
    """RunError with every file that is not the one that was merged."""
    problems = []
    for part, facts in zip(inputs.parts, record.adapters, strict=True):
        now = adapter_hashes(part.artifact.result)
        problems += [
            f"{part.artifact.result / name} is not the file that was merged"
            for name in facts.files
            if now.get(name) != facts.files[name]
        ]
    found = {file.name: file for file in inputs.base.files}
    for name in sorted({*found, *record.base_files}):
        recorded = record.base_files.get(name)
        if name not in found or recorded is None or sha256_of(found[name]) != recorded:
            problems.append(f"{inputs.base.folder / name} is not the file that the adapters were merged into")
    if not problems and inputs.trained.sha256 != record.quantized_sha256:
        problems.append(f"the {record.base_quantized} weights made of {inputs.base.folder} are not those of the merge")
    if problems:
        listed = "\n".join(f"{problem}." for problem in problems)
        raise RunError(
            f"{listed}\nSo the merge can be neither proved nor disproved. Name the right ones: rankwise merge ADAPTER "
            "--prove FOLDER --base-model BASE."
        )


def _same_header(file: Path, shard: Shard) -> bool:
    header = header_of_shard(shard)
    size = len(header) + sum(tensor.nbytes for tensor in shard.tensors)
    if not file.is_file() or file.stat().st_size != size:
        return False
    with file.open("rb") as opened:
        return opened.read(len(header)) == header


def _compared(plan: MergePlan, shard: Shard, folder: Path, callback: Callback, done: int) -> list[Differing]:
    base, merged, differing = MappedFiles(), MappedFiles(), list[Differing]()
    values = Values(plan, base)
    _, places = header_of(((one.key, one.code, one.shape) for one in shard.tensors), shard.metadata)
    for tensor in shard.tensors:
        start = places[tensor.key]
        stored = StoredTensor(
            folder / shard.name, tensor.key, tensor.code, tensor.shape, start, start + tensor.nbytes
        )  # fmt: skip
        if (problem := _difference(values, tensor, merged, stored)) is not None:
            differing.append(problem)
        done += tensor.nbytes
        callback(ProgressUpdate("Proving", done, plan.nbytes, "bytes"))
    return differing


def _difference(values: Values, tensor: Planned, merged: MappedFiles, stored: StoredTensor) -> Differing | None:
    at, numbers, steps = 0, 0, 0
    for piece in values.pieces_of(tensor):
        expected = piece.contiguous().flatten().view(torch.uint8)
        actual = merged.raw(stored, at, at + len(expected))
        if not _same(expected, actual):
            more, far = _steps(expected, actual, tensor.code)
            numbers, steps = numbers + more, max(steps, far)
        at += len(expected)
        merged.forget(stored)
    count = torch.Size(tensor.shape).numel()
    return Differing(tensor.key, numbers, count, steps) if numbers else None


def _same(one: Tensor, other: Tensor) -> bool:
    if len(one) % 8 == 0:
        one, other = one.view(torch.int64), other.view(torch.int64)
    return torch.equal(one, other)


def _steps(one: Tensor, other: Tensor, code: str) -> tuple[int, int]:
    """How many numbers differ, and by how many steps at most. Read as whole numbers, floating-point numbers of one sign
    keep their order; negative ones are turned around."""
    form = FORMATS.get(code)
    if form is None:
        return int((one != other).sum()), 0
    whole = WHOLE[form.stored.itemsize]
    smallest = torch.iinfo(whole).min
    a, b = (values.view(whole).to(torch.int64) for values in (one, other))
    a, b = (torch.where(values < 0, smallest - values, values) for values in (a, b))
    return int((a != b).sum()), int((a - b).abs().max())
