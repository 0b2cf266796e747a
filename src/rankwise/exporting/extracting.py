"""A LoRA adapter out of two models of one shape: what full fine-tuning changed, as the nearest change of low rank.

    D = W_tuned - W_base,   D_r = B A the nearest of rank r,   error = |D - D_r| / |D|       (adapters/low_rank.py)

Every linear layer (also GPT-2's Conv1D and convolutions) is read, decomposed and let go before the next one. What
changed elsewhere (embeddings, norms, biases) no LoRA of linear layers holds: it is measured and said. Modules that the
base has not, such as a classifier's new head, go into the adapter whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.base_layers import is_embedding, is_transposed, kind_of
from rankwise.adapters.formats.peft import rewrite, task_type_of
from rankwise.adapters.formats.peft_config import settings_of
from rankwise.adapters.low_rank import of_matrix
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.base.beside import copy_reader
from rankwise.base.kind import ModelKind
from rankwise.base.skeleton import skeleton
from rankwise.base.sources import Source
from rankwise.base.tensor_files import MappedFiles, StoredTensor
from rankwise.errors import AdapterError, some
from rankwise.exporting.merging.as_adapter import LayerError, error_of
from rankwise.exporting.merging.plan import FORMATS, refusal
from rankwise.methods.artifact import BASE_FACTS, BaseFacts
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import CARD
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.system.files import need_space, told_when_full, write_atomic


@dataclass(frozen=True)
class Pair:
    """What is compared. `report` is that of the run that `tuned` is the result of."""

    tuned: Path
    base: Source
    kind: ModelKind
    revision: str | None = None
    report: DataReport | None = None


@dataclass(frozen=True)
class Outside:
    """Changes that a LoRA of linear layers does not hold."""

    kind: str
    tensors: int
    share: float
    """Of the whole change, in Frobenius norms."""


@dataclass(frozen=True)
class Extracted:
    folder: str
    bytes: int
    parameters: int
    layers: tuple[LayerError, ...]
    error: float
    """Of the changes of these layers together, relative."""
    error_of_all: float
    """Of the change of the whole model."""
    outside: tuple[Outside, ...]
    whole: tuple[str, ...]
    """Modules that the base has not, stored whole."""


@dataclass
class _Sums:
    """Squares of Frobenius norms."""

    linear: float = 0.0
    lost: float = 0.0
    outside: dict[str, list[float]] = field(default_factory=dict)


def extract_adapter(
    pair: Pair, folder: Path, rank: int | None, error: float | None, callback: Callback
) -> Extracted:  # fmt: skip
    extraction = _Extraction(pair)
    layers = extraction.layers(rank, error, callback)
    heads = extraction.heads()
    if not extraction.factors and not heads:
        raise AdapterError(
            f"{pair.tuned} and {pair.base.folder} have the same linear layers: there is nothing to extract."
        )
    written = AdapterWeights(extraction.settings(heads), extraction.factors, heads)
    size = sum(value.nbytes for part in extraction.factors.values() for value in part.values)
    result = extraction.result(folder, layers, written)
    with told_when_full(folder):
        need_space(folder.absolute(), size)
        rewrite(written, folder, extraction.beside(), lambda temporary: extraction.fill(temporary, result))
    return extraction.result(folder, layers, written)


class _Extraction:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.base, self.tuned = skeleton(pair.base.folder, pair.kind), skeleton(pair.tuned, pair.kind)
        self.modules = host_view(self.base.module)
        self.names = dict(self.base.module.named_parameters(remove_duplicate=False))
        self.new = [name for name in self.names if self.tuned.stored(name) is not None and self._is_new(name)]
        self._check()
        self.factors: dict[str, Factors] = {}
        self.sums = _Sums()
        self._files = MappedFiles()

    def _is_new(self, name: str) -> bool:
        stored, own = self.base.stored(name), self.tuned.stored(name)
        return stored is None or (
            own is not None and stored.shape != own.shape and self.pair.kind.head_seed is not None
        )

    def _check(self) -> None:
        """AdapterError with every reason why the two cannot be compared."""
        missing = [name for name in self.names if self.tuned.stored(name) is None]
        problems = [f"{self.pair.tuned} lacks {len(missing)} weights, such as {some(missing, 2)}."] if missing else []
        for name in self.names:
            one, other = self.tuned.stored(name), self.base.stored(name)
            if one is None or other is None or name in self.new:
                continue
            if one.shape != other.shape:
                problems.append(
                    f'"{name}" has the shape {one.shape} in {self.pair.tuned}, and {other.shape} in the base.'
                )
            problems += [f"{problem}." for tensor in (one, other) if (problem := refusal(tensor.dtype, tensor.name))]
        if problems:
            raise AdapterError(some(problems, 8))

    def layers(self, rank: int | None, error: float | None, callback: Callback) -> tuple[LayerError, ...]:
        """Of every linear layer that changed; all other changes are added up by kind."""
        errors, done = [], 0
        counted: set[str] = set()
        for name in self.names:
            done += 1
            callback(ProgressUpdate("Extracting", done, len(self.names), "weights"))
            if name in self.new or name in counted:
                continue
            counted.update(self.base.tied.get(name, ()))
            delta = self._delta(name)
            energy = float(delta.square().sum())
            path, _, leaf = name.rpartition(".")
            host = self.modules.get(path)
            if energy == 0:
                continue
            if not self._is_layer(name, leaf, host):
                sums = self.sums.outside.setdefault(_kind(leaf, host), [0, 0.0])
                sums[0], sums[1] = sums[0] + 1, sums[1] + energy
                continue
            assert host is not None, "a layer is a module"
            errors.append(self._factorise(path, host, delta, rank, error))
        self._files.close()
        return tuple(errors)

    def _is_layer(self, name: str, leaf: str, host: nn.Module | None) -> bool:
        linear = host is not None and leaf == "weight" and kind_of(host) is not None and not is_embedding(host)
        return linear and name not in self.base.tied

    def _factorise(
        self, path: str, host: nn.Module, delta: Tensor, rank: int | None, error: float | None
    ) -> LayerError:  # fmt: skip
        shape = delta.shape
        matrix = delta.T if is_transposed(host) else delta.flatten(1)
        near = of_matrix(matrix, rank, error)
        B, A = near.B.float(), near.A.float()
        missed = error_of(near, B, A)
        self.sums.linear, self.sums.lost = self.sums.linear + near.norm**2, self.sums.lost + missed**2
        if delta.ndim == 4:  # filters of a convolution
            A, B = A.view(len(A), *shape[1:]), B[:, :, None, None]
        self.factors[path] = Factors(A.contiguous(), B.contiguous(), 1.0)
        return LayerError(path, near.rank, min(matrix.shape), missed / near.norm)

    def _delta(self, name: str) -> Tensor:
        one, other = self.tuned.stored(name), self.base.stored(name)
        assert one is not None and other is not None, "checked before"
        return self._value(one).sub_(self._value(other))

    def _value(self, tensor: StoredTensor) -> Tensor:
        rows = tensor.shape[0] if tensor.shape else 1
        value = self._files.rows(tensor, FORMATS[tensor.dtype].stored, 0, rows).to(torch.float64, copy=True)
        self._files.forget(tensor)
        return value.view(tensor.shape)

    def heads(self) -> dict[str, Tensor]:
        stored = {name: self.tuned.stored(name) for name in self.new}
        return {name: self._value(one).float() for name, one in stored.items() if one is not None}

    def settings(self, heads: Mapping[str, Tensor]) -> dict[str, Any]:
        layers = {path: self.modules[path] for path in self.factors}
        modules = sorted({name.rpartition(".")[0] for name in heads})
        source = self.pair.base
        return dict(sorted((settings_of(self.factors, layers, self.modules) | {
            "base_model_name_or_path": source.name_for_peft, "lora_dropout": 0.0, "modules_to_save": modules or None,
            "revision": self.pair.revision, "task_type": task_type_of(self.base.module),
        }).items()))  # fmt: skip

    def beside(self) -> dict[str, Any]:
        source, report = self.pair.base, self.pair.report
        facts = BaseFacts(
            name=source.name, source=source.where, fingerprint=source.fingerprint, dtype="float32", device="cpu"
        )  # fmt: skip
        files = {BASE_FACTS: facts.model_dump(mode="json")}
        return files if report is None else files | {DATA_REPORT: report.model_dump(mode="json")}

    def fill(self, folder: Path, result: Extracted) -> None:
        copy_reader(self.pair.tuned, folder)
        write_atomic(folder / CARD, _card(result).encode())

    def result(self, folder: Path, layers: tuple[LayerError, ...], written: AdapterWeights) -> Extracted:
        outside = sum(energy for _, energy in self.sums.outside.values())
        every = self.sums.linear + outside
        kinds = sorted(self.sums.outside.items(), key=lambda one: -one[1][1])
        return Extracted(
            str(folder), sum(file.stat().st_size for file in folder.glob("*.safetensors")), written.parameters, layers,
            math.sqrt(self.sums.lost / self.sums.linear) if self.sums.linear else 0.0,
            math.sqrt((self.sums.lost + outside) / every) if every else 0.0,
            tuple(Outside(kind, int(count), math.sqrt(energy / every)) for kind, (count, energy) in kinds),
            tuple(sorted({name.rpartition(".")[0] for name in written.heads})),
        )  # fmt: skip


def _kind(leaf: str, host: nn.Module | None) -> str:
    if host is not None and isinstance(host, nn.Embedding):
        return "embeddings"
    if leaf == "bias":
        return "biases"
    return "norms" if host is not None and "norm" in type(host).__name__.lower() else "other weights"


def _card(result: Extracted) -> str:
    ranks = [layer.rank for layer in result.layers]
    listed = f"{min(ranks)} to {max(ranks)}" if ranks else "none"
    return (
        "---\nlibrary_name: peft\ntags: [lora, rankwise]\n---\n\n# A LoRA adapter extracted from a fully fine-tuned "
        f"model\n\nIt was made by `rankwise extract` from {len(ranks)} linear layers (rank {listed}). Of the change of "
        f"these layers it leaves out {result.error:.2%}, and of that of the whole model {result.error_of_all:.2%} "
        "(relative Frobenius norms). How it answers was not measured; `rankwise evaluate` does that.\n"
    )
