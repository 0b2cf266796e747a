"""What both GGUF exports begin with: the base that was trained on, what the adapter changes in it, and a file that
appears whole or not at all.

Factors have the names of tensors in the file, with rows in the order of rows there:

    W' = W + t s B A             a linear layer; A (R, I), B (O, R)
    W' = W + t s (B A)^T         an embedding (V, O); A (R, V), B (O, R)
    W' = W + t (m (W + s B A) / n - W)     DoRA, n the length of each row of W + s B A

with t the strength. A module that was trained whole takes the place of the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.base.config_check import hub_config
from rankwise.base.gguf.architectures import Architecture, GgufNames, architecture_of
from rankwise.base.sources import Source, find
from rankwise.config.models import ModelConfig
from rankwise.errors import AdapterError, RunError, some
from rankwise.exporting.merge import Order, extra_files
from rankwise.methods.artifact import Artifact
from rankwise.methods.loading import result_of
from rankwise.system.files import published, published_file, write_json

SUFFIX = ".gguf"
NAMES = {"gguf": "model.gguf", "gguf-lora": "adapter.gguf"}
"""Name of the GGUF file in an export's folder, by format."""


@dataclass(frozen=True)
class GgufModel:
    """A run's model as GGUF names it. No weight is loaded."""

    artifact: Artifact
    model_config: ModelConfig
    """The base, or what a full run wrote."""
    source: Source
    config: dict[str, Any]
    architecture: Architecture
    names: GgufNames
    adapter: AdapterWeights | None
    """None for a model that was trained whole."""

    @property
    def file(self) -> Path | None:
        """The GGUF file of the base, if the adapter was trained over its numbers."""
        return None if self.model_config.packed_format is not None else self.source.gguf


def gguf_model(order: Order) -> GgufModel:
    """RunError or ModelError where this run cannot be written as GGUF, before anything is read but headers."""
    artifact, callback = order.artifact, order.callback
    if artifact.runs_own_code:
        raise RunError(f"{artifact.folder} was trained on a model with its own Python code, which llama.cpp does not "
        "know. Export the adapter as peft or portable.")  # fmt: skip
    spec = artifact.model
    source = find(spec, callback)
    source.refuse_packed("which are not written as GGUF")
    config = hub_config(source.folder).to_dict()
    architecture = architecture_of(config, artifact.described)
    weights = result_of(artifact.config).adapter_over(source, artifact, callback)
    if weights is not None:
        weights.refuse_tokens("or model in GGUF's form", "--format merged, which llama.cpp's converter takes")
    names = GgufNames(architecture, config)
    return GgufModel(
        artifact=artifact, model_config=spec, source=source, config=config, architecture=architecture, names=names,
        adapter=weights,
    )  # fmt: skip


@contextmanager
def gguf_file(order: Order) -> Iterator[Path]:
    """A temporary file that takes its name when the block ends. In a new folder JSON files lie beside it."""
    to = file_of(order)
    if to == order.folder:
        with published_file(to) as temporary:
            yield temporary
        return
    with published(order.folder) as folder:
        yield folder / to.name
        for file, value in extra_files(order.artifact, order.strength).items():
            write_json(folder / file, value)


def file_of(order: Order) -> Path:
    """What is to be created, if it ends in .gguf, or else a file in this new folder."""
    return order.folder if order.folder.suffix.lower() == SUFFIX else order.folder / NAMES[order.format]


@dataclass(frozen=True)
class GgufChange:
    factors: Mapping[str, Factors]
    """Factors of the changed layers, by the weight's name in GGUF; layers of rank 0 are left out."""
    full_weights: Mapping[str, Tensor]
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
        """Names of all tensors that are changed."""
        return {*self.factors, *self.full_weights}

    @torch.no_grad()
    def changed(self, name: str, weight: Tensor) -> Tensor:
        """The numbers of one tensor, in float32 and in GGUF's form, with the change in them."""
        weight = self.full_weights.get(name, weight)
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
