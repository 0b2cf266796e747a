"""Extract a LoRA adapter from a run of full fine-tuning, or from any two models of one shape."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

from rankwise.base.kind import CAUSAL_LM, ModelKind
from rankwise.base.sources import find
from rankwise.commands.export import check_free
from rankwise.commands.merge import cutting_problems
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, ModelError
from rankwise.exporting.extracting import Extracted, Pair, extract_adapter
from rankwise.methods.artifact import Artifact, Opening, open_artifact
from rankwise.runs.directory import find_run
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.system.foreign_json import read_json

KINDS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
"""The automatic class by how a folder's architecture is named; all others are causal language models or bare bodies."""


def extract(
    tuned: str | os.PathLike[str], to: str | Path, base: str | Path | None = None, *, rank: int | None = None,
    error: float | None = None, callback: Callback = silent, **opening: Unpack[Opening],
) -> Extracted:  # fmt: skip
    """Extract a LoRA adapter from a fully fine-tuned model and write it to `to`, with this `rank`, or for each layer
    the smallest rank with this relative `error`. `tuned` is a full run or a model folder, and `base` the model before;
    a run names its own base."""
    problems = ["give either --rank or --error."] if (rank is None) == (error is None) else []
    problems += cutting_problems(rank, error)
    if problems:
        raise ConfigError(problems)
    check_free(Path(to))
    pair = _pair(os.fspath(tuned), None if base is None else str(base), callback, opening)
    return extract_adapter(pair, Path(to), rank, error, callback)


def _pair(tuned: str, base: str | None, callback: Callback, opening: Opening) -> Pair:
    if find_run(tuned) is not None:
        return _of_run(open_artifact(tuned, callback, **opening), base, callback)
    if base is None:
        raise ConfigError([f'"{tuned}" is no run, so name its base model too: rankwise extract TUNED BASE.'])
    folder, source = find(ModelConfig(name=tuned), callback).folder, find(ModelConfig(name=base), callback)
    return Pair(folder, source, _kind_of(folder))


def _of_run(artifact: Artifact, base: str | None, callback: Callback) -> Pair:
    artifact.refuse("extracted")
    named = artifact.base_named if base is None else ModelConfig(name=base)
    assert named is not None, "a run names its base"
    source = find(named, callback)
    callback(StatusMessage(f"Base model: {source.name} in {source.folder}"))
    artifact.check_base(source, "extract", callback)
    kind = artifact.objective.kind
    return Pair(artifact.result, source, kind, named.revision, artifact.data_report)


def _kind_of(folder: Path) -> ModelKind:
    """By the architecture that config.json names."""
    config: dict[str, Any] = read_json(folder / "config.json")
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    for ending, auto_class in KINDS.items():
        if name.endswith(ending):
            labels = config.get("id2label")
            settings = {"num_labels": len(labels)} if isinstance(labels, dict) else {}
            return ModelKind(auto_class, f"a model of the class {name}", 0, settings)
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return CAUSAL_LM
    if name.endswith("Model"):
        return ModelKind("AutoModel", f"a model of the class {name}")
    raise ModelError(
        f"{folder / 'config.json'} names the architecture {name or 'nothing'!r}; extract knows causal and masked "
        "language models, classifiers of texts and images, and bare models."
    )
