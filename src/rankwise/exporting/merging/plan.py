"""A merge as data, before anything is written: every tensor of every new file, where it comes from and what changes it.

    W' = round(W + D),   computed in float32, for float64 in float64, and rounded once

Files and names of tensors stay those of the base. New are only heads that the base has not, and tables that were one
weight with another: where only one of the two changes, both are stored, and config.json says that they are no longer
tied. What cannot be merged is refused, all problems at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rankwise.base.tensor_files import SIZES, StoredTensor
from rankwise.errors import AdapterError, some
from rankwise.exporting.merging.inputs import Inputs
from rankwise.kernels.row_pieces import PIECE


@dataclass(frozen=True)
class NumberFormat:
    """`stored` is what lies in the file and `working` what a change is added in."""

    code: str
    """As safetensors names it."""
    stored: torch.dtype
    working: torch.dtype

    @property
    def name(self) -> str:
        return str(self.stored).removeprefix("torch.")

    @property
    def rounding(self) -> float:
        """The largest relative error of one rounding of a number that is not too small for the format."""
        return torch.finfo(self.stored).eps / 2


FORMATS: Mapping[str, NumberFormat] = {
    code: NumberFormat(code, stored, torch.promote_types(stored, torch.float32))
    for code, stored in (
        ("F64", torch.float64), ("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16),
    )
}  # fmt: skip
BY_NAME = {form.name: form for form in FORMATS.values()}
QUANTISED = {
    "I8": "8-bit integers (int8)", "U8": "packed bytes (such as NF4 or GGUF's blocks)", "I32": "packed integers",
    "F8_E4M3": "8-bit floating point (FP8)", "F8_E5M2": "8-bit floating point (FP8)", "F4": "4-bit floating point",
}  # fmt: skip


def refusal(code: str, key: str) -> str | None:
    """Why a change cannot be merged into a tensor of this format; None where it can."""
    if code in FORMATS:
        return None
    form = QUANTISED.get(code, code)
    return (
        f'"{key}" of the base is stored as {form}, which a change cannot be merged into yet. Use the base in float32, '
        "bfloat16 or float16"
    )


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of a new file. Without a layer and a value it is copied, or converted where the format differs."""

    key: str
    code: str
    shape: tuple[int, ...]
    source: StoredTensor | None
    layer: str | None = None
    """The path of the adapted layer whose weight this is."""
    full_weight: Tensor | None = None
    """The trained value of a head, and `share`, how far it goes there from the base's."""
    share: float = 1.0
    packed: bool = False
    """Whether its numbers are those of the base's quantised weight, and not of `source`, which gives name and shape."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.code]

    @property
    def changed(self) -> bool:
        return self.layer is not None or self.full_weight is not None

    @property
    def has_change(self) -> bool:
        """Whether the rounding of its sum is reported."""
        return self.layer is not None or self.packed

    @property
    def copied(self) -> bool:
        same = not self.changed and not self.packed
        return same and self.source is not None and self.source.dtype == self.code


@dataclass(frozen=True)
class Shard:
    name: str
    tensors: tuple[PlannedTensor, ...]
    metadata: Mapping[str, str]


class MergePlan:
    """Raises an AdapterError with every problem where this cannot be merged."""

    def __init__(self, inputs: Inputs, dtype: str | None = None) -> None:
        self.inputs, self.base = inputs, inputs.base
        self.dtype = None if dtype is None else BY_NAME[dtype]
        """The format that all weights are converted to; None where each keeps the base's."""
        self.left_out: list[StoredTensor] = []
        """Tensors of the base that the merged model does not have, such as a language model's head in a classifier."""
        self.warnings = list(inputs.warnings)
        counts = Counter(tensor.dtype for tensor in self.base.tensors.values() if tensor.dtype in FORMATS)
        self._usual = self.dtype.code if self.dtype else counts.most_common(1)[0][0] if counts else "F32"
        """The number format of tensors that the base does not have."""
        self._layers = {f"{path}.weight": path for path in inputs.layers}
        self._heads = {
            name: (value, part.weight * inputs.strength)
            for part in inputs.parts for name, value in part.adapter.heads.items()
        }  # fmt: skip
        groups = [self.base.tied.get(name, ()) for name in (*self._layers, *self._heads)]
        self.untied = sorted({name for group in groups for name in group if len(group) > 1})
        self._problems = self._changed_problems()
        self.shards = self._shards()
        if self._problems:
            raise AdapterError("\n".join(f"{problem}." for problem in self._problems))

    @property
    def tensors(self) -> list[PlannedTensor]:
        return [tensor for shard in self.shards for tensor in shard.tensors]

    @property
    def changed(self) -> list[PlannedTensor]:
        return [tensor for tensor in self.tensors if tensor.changed]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def formats(self) -> str:
        counts = Counter[str]()
        for tensor in self.tensors:
            counts[FORMATS[tensor.code].name if tensor.code in FORMATS else tensor.code] += math.prod(tensor.shape)
        return some(name for name, _ in counts.most_common())

    @property
    def memory(self) -> int:
        """Bytes beyond the program itself: the adapters, the largest layer's factors and a few pieces."""
        adapters = sum(
            value.nbytes for part in self.inputs.parts for one in part.adapter.factors.values() for value in one.values
        )
        largest = max((math.prod(tensor.shape) for tensor in self.changed), default=0)
        laid = 4 * 4 * largest if self.inputs.combining.lays_out else 0
        unpacked = 4 * self.inputs.trained.largest
        return adapters + laid + unpacked + 8 * 6 * min(PIECE, largest or PIECE) + 4 * self._largest_factors

    @property
    def _largest_factors(self) -> int:
        sums = (sum(one.A.numel() + one.B.numel() for one, _ in layer) for layer in self.inputs.layers.values())
        return 2 * max(sums, default=0)

    def summary(self) -> dict[str, Any]:
        """What `rankwise merge --plan --json` prints."""
        inputs = self.inputs
        return {
            "base": inputs.source.name,
            "base_quantized": inputs.trained.name,
            "adapters": [str(part.artifact.folder) for part in inputs.parts],
            "weights": [part.weight for part in inputs.parts],
            "method": inputs.combining.kind,
            "strength": inputs.strength,
            "dtype": self.formats,
            "bytes": self.nbytes,
            "memory_bytes": self.memory,
            "files": len(self.shards),
            "tensors": len(self.tensors),
            "changed": [tensor.key for tensor in self.changed],
            "untied": list(self.untied),
            "left_out": [tensor.name for tensor in self.left_out],
            "warnings": list(self.warnings),
        }

    def _shards(self) -> list[Shard]:
        shards = []
        known = dict(self.base.module.named_parameters(remove_duplicate=False)) | self.base.module.state_dict()
        for file, tensors in self.base.files.items():
            planned: list[PlannedTensor] = []
            for key, tensor in tensors.items():
                name = self.base.names.get(key)
                if name is not None or self.inputs.objective.head is None:
                    planned.append(self._planned(key, name, tensor, known))
                else:
                    self.left_out.append(tensor)
            shards.append(Shard(file.name, tuple(planned), self.base.metadata[file]))
        new = tuple(self._new(known))
        shards[-1] = replace(shards[-1], tensors=(*shards[-1].tensors, *new))
        return shards

    def _planned(self, key: str, name: str | None, tensor: StoredTensor, known: Mapping[str, Any]) -> PlannedTensor:
        planned = PlannedTensor(key, self._code(tensor), tensor.shape, tensor, packed=key in self.inputs.trained)
        if name in self._layers:
            return replace(planned, layer=self._layers[name])
        if name in self._heads:
            value, share = self._heads[name]
            other = tuple(value.shape) != tensor.shape
            return replace(planned, full_weight=value, shape=tuple(value.shape), share=share,
                           packed=planned.packed and not other, source=None if other else tensor)  # fmt: skip
        if name is not None and tuple(known[name].shape) != tensor.shape:
            self._problems.append(
                f'"{key}" of the base has the shape {tensor.shape}, but the model needs {tuple(known[name].shape)}'
            )
        return planned

    def _new(self, known: Mapping[str, Any]) -> Iterable[PlannedTensor]:
        """Heads that the base has not, and the other halves of tables that are parted."""
        for name in dict.fromkeys([*self.untied, *self._heads]):
            if name in self.base.keys:
                continue
            value, share = self._heads.get(name, (None, 1.0))
            source = self.base.stored(name)
            if value is None and source is None:
                continue
            shape = tuple(known[name].shape)
            code = self._code(source) if source is not None else self._usual
            yield PlannedTensor(
                key=name, code=code, shape=shape, source=source, layer=self._layers.get(name), full_weight=value,
                share=share,
            )  # fmt: skip

    def _code(self, tensor: StoredTensor) -> str:
        """Whole numbers, such as counters, stay what they are."""
        return self.dtype.code if self.dtype is not None and tensor.dtype in FORMATS else tensor.dtype

    def _changed_problems(self) -> list[str]:
        problems: list[str] = []
        for name in (*self._layers, *self._heads):
            tensor = self.base.stored(name)
            if name in self.base.assembled:
                problems.append(
                    f'"{name}" is assembled from several tensors of the base when the model is loaded, so its change '
                    "cannot be merged file by file; use rankwise export --format merged"
                )
            elif tensor is None and name not in self._heads:
                problems.append(f'"{name}" is in none of the files of {self.base.folder}')
            elif tensor is not None and (problem := refusal(tensor.dtype, tensor.name)):
                problems.append(problem)
        missing = [
            name for name, _ in self.base.module.named_parameters(remove_duplicate=False)
            if self.base.stored(name) is None and name not in self._heads and name not in self.base.assembled
        ]  # fmt: skip
        if missing:
            problems.append(f"{self.base.folder} lacks {len(missing)} weights of the model: {some(missing, 3)}")
        small = sum(
            1 for name in self._layers if (one := self.base.stored(name)) and self._code(one) in ("BF16", "F16")
        )
        if small:
            self.warnings.append(
                f"{small} changed tensors are rounded to {FORMATS[self._usual].name}, "
                "which may lose part of a small change; the error is measured, and --dtype float32 avoids it"
            )
        return problems
