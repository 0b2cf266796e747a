"""What both GGUF exports begin with: the base that was trained on, and a file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.adapters.formats.peft import as_lora
from rankwise.adapters.weights import AdapterWeights
from rankwise.config.models import ModelConfig
from rankwise.errors import RunError
from rankwise.methods.artifact import Artifact
from rankwise.methods.registry import method_of
from rankwise.methods.stored_adapter import stored_weights
from rankwise.models.gguf_architectures import Architecture, GgufNames, architecture_of, config_in
from rankwise.models.sources import Source, find
from rankwise.runs.records import Callback
from rankwise.system.files import published, published_file, write_json

SUFFIX = ".gguf"


@dataclass(frozen=True)
class GgufModel:
    """A run's model as GGUF names it. No weight is loaded."""

    artifact: Artifact
    spec: ModelConfig
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
        return None if self.spec.packed_format is not None else self.source.gguf


def gguf_model(artifact: Artifact, callback: Callback, *, force_base: bool) -> GgufModel:
    """RunError or ModelError where this run cannot be written as GGUF, before anything is read but headers."""
    if artifact.run is not None and artifact.run.experiment.model.trust_code is not None:
        raise RunError(f"{artifact.folder} was trained on a model with its own Python code, which llama.cpp does not "
        "know. Export the adapter as peft or portable.")  # fmt: skip
    if artifact.targets is not None:
        raise RunError(
            f"{artifact.described} is a classifier, and GGUF files are written for language models alone. Use --format "
            "peft or merged."
        )
    spec = method_of(artifact.config).model_of(artifact)
    source = find(spec, callback)
    source.refuse_packed("which are not written as GGUF")
    config = config_in(source.folder)
    architecture = architecture_of(config, artifact.described)
    adapted = not artifact.config.trains_base
    if adapted and artifact.trained_on is not None and not force_base:
        _check_base(artifact, source)
    weights = as_lora(stored_weights(artifact, callback)) if adapted else None
    if weights is not None:
        weights.refuse_tokens("or model in GGUF's form", "--format merged, which llama.cpp's converter takes")
    names = GgufNames(architecture, config)
    return GgufModel(artifact, spec, source, config, architecture, names, weights)


def _check_base(artifact: Artifact, source: Source) -> None:
    trained_on = artifact.trained_on
    if trained_on is not None and source.fingerprint != trained_on.fingerprint:
        found = f"the base model found now, from {source.where},"
        told = trained_on.refusal(artifact.described, found, *source.fingerprints)
        raise RunError(f"{told} Use --force-base to export anyway.")


@contextmanager
def gguf_file(to: Path, name: str, beside: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary file that takes its name when the block ends: `to` itself if it ends in .gguf, or else `name` in the
    new folder `to`, with JSON files `beside` it."""
    if is_gguf_file(to):
        with published_file(to) as temporary:
            yield temporary
        return
    with published(to) as folder:
        yield folder / name
        for file, value in beside.items():
            write_json(folder / file, value)


def is_gguf_file(to: Path) -> bool:
    return to.suffix.lower() == SUFFIX
