"""A LoRA adapter out of two models of one shape: what full fine-tuning changed, as the nearest change of low rank.

    D = W_tuned - W_base,   D_r = B A the nearest of rank r,   error = |D - D_r| / |D|       (adapters/low_rank.py)

Every linear layer (also GPT-2's Conv1D and convolutions) is read, decomposed and let go before the next one. What
changed elsewhere (embeddings, norms, biases) no LoRA of linear layers holds: it is measured and said. Modules that the
base has not, such as a classifier's new head, go into the adapter whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON files that lie beside the adapter."""
        source, report = self.base, self.report
        facts = BaseFacts(
            name=source.name, source=source.where, fingerprint=source.fingerprint, dtype="float32", device="cpu"
        )  # fmt: skip
        files = {BASE_FACTS: facts.model_dump(mode="json")}
        return files if report is None else files | {DATA_REPORT: report.model_dump(mode="json")}


@dataclass(frozen=True)
class Outside:
    """Changes that a LoRA of linear layers does not hold."""

    kind: str
    tensors: int
    share: float
    """Frobenius norm of these changes, as a share of that of the whole change."""


@dataclass(frozen=True)
class Extracted:
    folder: str
    bytes: int
    parameters: int
    layers: tuple[LayerError, ...]
    error: float
    """Relative error of the changes of all these layers together, in Frobenius norms."""
    error_of_all: float
    """Relative error of the change of the whole model, in Frobenius norms."""
    outside: tuple[Outside, ...]
    whole: tuple[str, ...]
    """Modules that the base has not, stored whole."""


def extract_adapter(
    pair: Pair, folder: Path, rank: int | None, error: float | None, callback: Callback
) -> Extracted:  # fmt: skip
    extraction = _Extraction(pair)
    extraction.compare(rank, error, callback)
    if not extraction.factors and not extraction.heads:
        raise AdapterError(
            f"{pair.tuned} and {pair.base.folder} have the same linear layers: there is nothing to extract."
        )
    written = AdapterWeights(extraction.settings(), extraction.factors, extraction.heads)
    size = sum(value.nbytes for part in extraction.factors.values() for value in part.values)
    result = extraction.result(folder, written)

    def fill(temporary: Path) -> None:
        copy_reader(pair.tuned, temporary)
        write_atomic(temporary / CARD, _card(result).encode())

    with told_when_full(folder):
        need_space(folder.absolute(), size)
        rewrite(written, folder, pair.facts, fill)
    return replace(result, bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")))


class _Extraction:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.base, self.tuned = skeleton(pair.base.folder, pair.kind), skeleton(pair.tuned, pair.kind)
        self.modules = host_view(self.base.module)
        self.factors: dict[str, Factors] = {}
        self.layers: list[LayerError] = []
        self.norm = self.lost = 0.0
        """Squares of Frobenius norms: of the changes of these layers, and of what is left out of them."""
        self.outside: dict[str, list[float]] = {}
        """What changed outside these layers, by kind of weight."""
        self._files = MappedFiles()
        self.both, new = self._paired()
        self.heads = {name: self._value(one).float() for name, one in new.items()}

    def _paired(self) -> tuple[dict[str, tuple[StoredTensor, StoredTensor]], dict[str, StoredTensor]]:
        """The weights of both models, and those that the base has not, such as a new head. AdapterError with every
        reason why the two cannot be compared."""
        both, new, missing, problems = dict[str, tuple[StoredTensor, StoredTensor]](), {}, [], []
        for name, _ in self.base.module.named_parameters(remove_duplicate=False):
            tuned, own = self.tuned.stored(name), self.base.stored(name)
            if tuned is None:
                missing.append(name)
            elif own is None or (own.shape != tuned.shape and self.pair.kind.head_seed is not None):
                new[name] = tuned
            else:
                both[name] = tuned, own
                if own.shape != tuned.shape:
                    problems.append(
                        f'"{name}" has the shape {tuned.shape} in {self.pair.tuned}, and {own.shape} in the base.'
                    )
                problems += [f"{why}." for one in (tuned, own) if (why := refusal(one.dtype, one.name))]
        if missing:
            problems.insert(0, f"{self.pair.tuned} lacks {len(missing)} weights, such as {some(missing, 2)}.")
        if problems:
            raise AdapterError(some(problems, 8))
        return both, new

    def compare(self, rank: int | None, error: float | None, callback: Callback) -> None:
        """Every linear layer that changed gets factors; all other changes are added up by kind."""
        counted: set[str] = set()
        for done, (name, (tuned, own)) in enumerate(self.both.items(), 1):
            callback(ProgressUpdate("Extracting", done, len(self.both), "weights"))
            if name in counted:
                continue
            counted.update(self.base.tied.get(name, ()))
            delta = self._value(tuned).sub_(self._value(own))
            path, _, leaf = name.rpartition(".")
            host, energy = self.modules.get(path), float(delta.square().sum())
            linear = host is not None and leaf == "weight" and kind_of(host) is not None and not is_embedding(host)
            if energy and host is not None and linear and name not in self.base.tied:
                matrix = delta.T if is_transposed(host) else delta.flatten(1)
                near = of_matrix(matrix, rank, error)
                B, A = near.B.float(), near.A.float()
                missed = error_of(near, B, A)
                self.norm, self.lost = self.norm + near.norm**2, self.lost + missed**2
                self.layers.append(LayerError(path, near.rank, min(matrix.shape), missed / near.norm))
                if delta.ndim == 4:  # filters of a convolution
                    A, B = A.view(len(A), *delta.shape[1:]), B[:, :, None, None]
                self.factors[path] = Factors(A.contiguous(), B.contiguous(), 1.0)
            elif energy:
                sums = self.outside.setdefault(_kind(leaf, host), [0, 0.0])
                sums[0], sums[1] = sums[0] + 1, sums[1] + energy
        self._files.close()

    def _value(self, tensor: StoredTensor) -> Tensor:
        rows = tensor.shape[0] if tensor.shape else 1
        value = self._files.rows(tensor, FORMATS[tensor.dtype].stored, 0, rows).to(torch.float64, copy=True)
        self._files.forget(tensor)
        return value.view(tensor.shape)

    @property
    def whole(self) -> list[str]:
        """Modules of the heads."""
        return sorted({name.rpartition(".")[0] for name in self.heads})

    def settings(self) -> dict[str, Any]:
        layers = {path: self.modules[path] for path in self.factors}
        return dict(sorted((settings_of(self.factors, layers, self.modules) | {
            "base_model_name_or_path": self.pair.base.name_for_peft, "lora_dropout": 0.0,
            "modules_to_save": self.whole or None, "revision": self.pair.revision,
            "task_type": task_type_of(self.base.module),
        }).items()))  # fmt: skip

    def result(self, folder: Path, weights: AdapterWeights) -> Extracted:
        """But for the bytes of its files."""
        outside = sum(energy for _, energy in self.outside.values())
        every = self.norm + outside
        kinds = sorted(self.outside.items(), key=lambda item: -item[1][1])
        return Extracted(
            folder=str(folder), bytes=0, parameters=weights.parameters, layers=tuple(self.layers),
            error=math.sqrt(self.lost / self.norm) if self.norm else 0.0,
            error_of_all=math.sqrt((self.lost + outside) / every) if every else 0.0,
            outside=tuple(Outside(kind, int(count), math.sqrt(energy / every)) for kind, (count, energy) in kinds),
            whole=tuple(self.whole),
        )  # fmt: skip


def _kind(leaf: str, base_layer: nn.Module | None) -> str:
    if base_layer is not None and isinstance(base_layer, nn.Embedding):
        return "embeddings"
    if leaf == "bias":
        return "biases"
    return "norms" if base_layer is not None and "norm" in type(base_layer).__name__.lower() else "other weights"


def _card(result: Extracted) -> str:
    ranks = [layer.rank for layer in result.layers]
    listed = f"{min(ranks)} to {max(ranks)}" if ranks else "none"
    return (
        "---\nlibrary_name: peft\ntags: [lora, rankwise]\n---\n\n# A LoRA adapter extracted from a fully fine-tuned "
        f"model\n\nIt was made by `rankwise extract` from {len(ranks)} linear layers (rank {listed}). Of the change of "
        f"these layers it leaves out {result.error:.2%}, and of that of the whole model {result.error_of_all:.2%} "
        "(relative Frobenius norms). How it answers was not measured; `rankwise evaluate` does that.\n"
    )
