"""Which models are on this disk: starters, the hub client's cache, and conversions. torch is not imported."""

from __future__ import annotations

from pathlib import Path

import rankwise.base.quiet as _quiet  # noqa: F401  sets the environment before the hub client reads it
from rankwise.base.starters import STARTERS, Starter, index_folder
from rankwise.config.models import ModelConfig
from rankwise.system.cache import GGUF_FOLDER, STARTER_FOLDER, cache_folder
from rankwise.system.files import path_here
from rankwise.system.foreign_json import read_json
from rankwise.system.hub import could_be_hub_id

FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
ESSENTIAL = ["config.json", "tokenizer.json", "model*.safetensors"]
UNUSED = ["consolidated*", "[!1]*/*", "1[!_]*/*", "1_[!P]*/*"]
"""Weights in another layout, and subfolders with other formats; not 1_Pooling, which says how a text is pooled."""


def is_here(config: ModelConfig) -> bool:
    """Whether a model can be found without the network."""
    if config.name in STARTERS and config.revision is None:
        return starter_folder(STARTERS[config.name]) is not None
    if path_here(config.name) is not None:
        return True
    return could_be_hub_id(config.name) and in_hub_cache(config.name, config.revision) is not None


def starter_folder(starter: Starter) -> Path | None:
    return index_folder(starter) or in_hub_cache(starter.hub_id, None)


def in_hub_cache(repo: str, revision: str | None) -> Path | None:
    """The folder of a hub model that is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for wanted in (FILES, ESSENTIAL):  # another program may have downloaded fewer files
        try:
            folder = Path(
                snapshot_download(
                    repo, revision=revision, local_files_only=True, allow_patterns=wanted, ignore_patterns=UNUSED
                )
            )
        except (LocalEntryNotFoundError, OSError):
            continue
        if (folder / "config.json").exists() and _shards_are_there(folder):
            return folder
    return None


def _shards_are_there(folder: Path) -> bool:
    """Tell whether all weight files of the index are there, or any weight file if there is no index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / str(shard)).is_file() for shard in set(read_json(index).get("weight_map", {}).values()))


def cached_hub_models() -> dict[str, Path]:
    """List cached hub models that have weights, by name."""
    from huggingface_hub import constants

    found: dict[str, Path] = {}
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = in_hub_cache(name, None) if could_be_hub_id(name) else None
        if snapshot is not None:
            found[name] = snapshot
    return found


def cached_conversions() -> list[Path]:
    """Folders of models that were converted, or came as a starter's folder."""
    names = (f"{GGUF_FOLDER}*", f"{STARTER_FOLDER}*")
    return sorted(path for name in names for path in (cache_folder() / "models").glob(name) if path.is_dir())


def cached_starter() -> str | None:
    """Return the name of a cached starter that generates text, if there is one."""
    return next((one.name for one in STARTERS.values() if one.generates and starter_folder(one) is not None), None)
