"""Which models are known here, and what a model is made of: its layers by kind and shape, and what all-linear and
all-conv choose of them.

A model that is inspected is built without memory, or its shape is known already: no weight is read, and of the hub at
most a config.json is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.base.cached import cached_conversions, cached_hub_models
from rankwise.base.gguf.header import is_gguf_adapter
from rankwise.base.starters import STARTERS, index_folder
from rankwise.config.models import ModelConfig
from rankwise.forward.plan import shape_to_adapt
from rankwise.planning.parameters import LayerGroup, TargetChoice, choices_of, default_target, groups_of
from rankwise.planning.reading import CONFIG, catalogue_model
from rankwise.runs.directory import find_run
from rankwise.runs.records import Callback, silent
from rankwise.system.cache import source_of
from rankwise.system.files import LONGEST_NAME, path_here
from rankwise.system.hub import could_be_hub_id

ADAPTER = "adapter_config.json"
"""In the folder of an adapter."""


@dataclass(frozen=True)
class InspectedModel:
    model: str
    family: str
    parameters: int
    head_parameters: int
    """Parameters of the head that a classifier of two classes would get."""
    layers: list[LayerGroup]
    targets: list[TargetChoice]
    default: str

    def summary(self) -> dict[str, Any]:
        """What `rankwise inspect --json` prints."""
        return {
            "model": self.model, "family": self.family, "parameters": self.parameters,
            "head_parameters": self.head_parameters, "layers": self.layers,
            "targets": {choice.target: _summary(choice, self.parameters) for choice in self.targets},
            "default_target": self.default,
        }  # fmt: skip


def _summary(choice: TargetChoice, total: int) -> dict[str, Any]:
    if choice.refusal is not None:
        return {"layers": 0, "trainable": 0, "share": 0.0, "file_bytes": 0, "notes": [], "refusal": choice.refusal}
    return {
        "layers": len(choice.paths), "trainable": choice.trainable, "share": choice.trainable / total,
        "file_bytes": choice.file_bytes, "notes": list(choice.notes), "refusal": None,
    }  # fmt: skip


def means_model(name: str) -> bool:
    """Whether a name is that of a model, and of no run and no adapter's folder: a model that is known or on this disk,
    or a name of the hub's form."""
    if not 0 < len(name) < LONGEST_NAME or find_run(name) is not None:
        return False
    path = path_here(name)
    if path is not None and ((path / ADAPTER).is_file() or (path.is_file() and is_gguf_adapter(path))):
        return False
    if name in STARTERS or catalogue_model(name) is not None:
        return True
    if path is not None:
        return (path / CONFIG).is_file() or path.suffix.lower() in (".gguf", ".json")
    return "/" in name and could_be_hub_id(name)


def inspect_model(name: str) -> InspectedModel:
    """A starter, a model of the catalogue or of the hub, a folder with a config.json, that file or a .gguf file."""
    shape = shape_to_adapt(name)
    heads = sum(layer.parameters for layer in shape.layers if layer.path in shape.full_paths)
    return InspectedModel(
        model=shape.name, family=shape.family, parameters=shape.parameters - heads, head_parameters=heads,
        layers=groups_of(shape), targets=choices_of(shape), default=default_target(shape),
    )  # fmt: skip


@dataclass(frozen=True)
class KnownModel:
    name: str
    kind: str
    cached: bool
    bytes: int
    about: str
    does: str = ""
    """What it is for, where that is known."""


def known_models() -> list[KnownModel]:
    hub = cached_hub_models()
    starters = [
        KnownModel(starter.name, "starter", folder is not None, _size(folder), starter.about, starter.does)
        for starter in STARTERS.values()
        for folder in [index_folder(starter) or hub.get(starter.hub_id)]
    ]
    made = {folder for starter in STARTERS.values() if (folder := index_folder(starter))}
    return [
        *starters,
        *(KnownModel(name, "hub", True, _size(folder), str(folder)) for name, folder in hub.items()),
        *(KnownModel(str(folder), "converted GGUF", True, _size(folder), source_of(folder) or "")
          for folder in cached_conversions() if folder not in made),
    ]  # fmt: skip


def pull(name: str, revision: str | None = None, callback: Callback = silent) -> KnownModel:
    """Download a model if it is not cached, and return its location."""
    from rankwise.base.sources import find

    source = find(ModelConfig(name=name, revision=revision), callback)
    return KnownModel(name, source.where, True, _size(source.folder), str(source.folder))


def _size(folder: Path | None) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder else 0
