"""List starters and cached models, and download a model in advance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rankwise.base.cached import cached_conversions, cached_hub_models
from rankwise.base.starters import STARTERS, index_folder
from rankwise.config.models import ModelConfig
from rankwise.runs.records import Callback, silent
from rankwise.system.cache import source_of


@dataclass(frozen=True)
class KnownModel:
    name: str
    kind: str
    cached: bool
    bytes: int
    about: str


def known_models() -> list[KnownModel]:
    hub = cached_hub_models()
    starters = [
        KnownModel(starter.name, "starter", folder is not None, _size(folder), starter.about)
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
