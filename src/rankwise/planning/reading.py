"""A model's name into its shape, without a weight: from the catalogue, a folder, a GGUF file, or the hub's config.json.

A name means what it means to a training: a starter, then what is on this disk. What the catalogue knows is answered
without a network; then the hub client's cache is looked into; and only what is nowhere is asked for, one small file. A
shape that neither the catalogue nor the cache has is built, by a function that the caller gives: building takes torch.

`catalogue.json` holds a line for each: our name, the names of the hub that mean it, the settings that decide its shape,
and the shape that transformers built of them (`lab/make_catalogue.py` writes it). GPT-3's weights were never given out;
it is laid out like OPT. A test compares the parameters of each with what was published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from rankwise.base.gguf.header import NOT_OF_THE_MODEL, config_of_gguf, matrix_bytes, read_gguf_header
from rankwise.config.base import shown
from rankwise.config.images import processing_of
from rankwise.errors import ModelError, did_you_mean, first_line, some
from rankwise.planning.shape import Build, ModelShape, NewHead, cached_shape, shape_from_json
from rankwise.planning.tokens import TokenCounter
from rankwise.system.files import path_here
from rankwise.system.foreign_json import read_json
from rankwise.system.hub import cached_file, could_be_hub_id, folder_here, hub_answers, why_silent

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
STARTERS = frozenset({"smollm2-135m", "minilm", "dinov2-small", "efficientnet-lite0", "qwen-0.5b"})
"""Names that a training takes before it looks at the disk (base/starters.py); a test compares both."""
FILE = "catalogue.json"


@dataclass(frozen=True)
class CatalogueModel:
    name: str
    hub: tuple[str, ...]
    """The names of models on the hub that have this shape."""
    config: Mapping[str, Any]
    stored: Mapping[str, Any]
    """The shape as JSON, in which equal blocks that follow each other are written once:
    `{"repeat": "model.layers", "first": 0, "count": 30, "layers": [{"path": "self_attn.q_proj", ...}, ...]}`."""
    image: int | None = None
    """Side in pixels that its image processor makes, where that is another than its config.json has."""

    @property
    def family(self) -> str:
        return self.config["model_type"]

    @property
    def shape(self) -> ModelShape:
        layers = [layer for run in self.stored["layers"] for layer in _layers(run)]
        return shape_from_json({**self.stored, "layers": layers}, self.name)


def _layers(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "repeat" not in run:
        return [run]
    numbers = range(run["first"], run["first"] + run["count"])
    return [
        {**layer, "path": ".".join(filter(None, (run["repeat"], str(number), layer["path"])))}
        for number in numbers
        for layer in run["layers"]
    ]


@cache
def catalogue() -> dict[str, CatalogueModel]:
    rows = json.loads(Path(__file__).with_name(FILE).read_text(encoding="utf-8"))
    models = (
        CatalogueModel(row["name"], tuple(row["hub"]), row["config"], row["shape"], row.get("image")) for row in rows
    )
    return {model.name: model for model in models}


@cache
def catalogue_names() -> dict[str, CatalogueModel]:
    """By every name in small letters, the hub's among them."""
    return {name.lower(): model for model in catalogue().values() for name in (model.name, *model.hub)}


def catalogue_model(name: str) -> CatalogueModel | None:
    return catalogue_names().get(name.lower())


@dataclass(frozen=True)
class PlannedBase:
    """The model that a plan is made of. `name` is one of the catalogue, a folder with a config.json, that file, a .gguf
    file, or a model of the hub, of which `revision` may be another than the catalogue knows. Each of its files is read
    when it is first asked for, and once."""

    name: str
    revision: str | None
    build: Build
    tokenizer_of: Callable[[Path], Path | None]
    """The folder with the tokenizer of a GGUF file; None for another file."""

    @cached_property
    def path(self) -> Path | None:
        """Where it is on this disk under its own name."""
        return path_here(self.name) if self.name not in STARTERS else None

    @cached_property
    def known(self) -> CatalogueModel | None:
        """What the catalogue has of it."""
        return catalogue_model(self.name) if self.revision is None and self.path is None else None

    @cached_property
    def folder(self) -> Path | None:
        """Where its tokenizer and weights are on this disk."""
        return folder_here(self.name) if self.path is None else self.path if self.path.is_dir() else None

    @cached_property
    def tokens(self) -> TokenCounter:
        return TokenCounter(self.folder or (self.path and self.tokenizer_of(self.path)))

    def shape(self, head: NewHead | None = None) -> ModelShape:
        """With `head` it becomes a classifier, which the catalogue does not have."""
        if self.known is not None and head is None:
            return self.known.shape
        if self.path is not None and self.path.suffix.lower() == ".gguf" and self.path.is_file():
            return shape_of_gguf(self.path, self.build, head)
        config, where = self.config
        return cached_shape(config, self.name if self.known is None else self.known.name, where, self.build, head)

    @cached_property
    def config(self) -> tuple[dict[str, Any], str]:
        """What its config.json says, and what messages call it."""
        if self.known is not None:
            file = None if self.folder is None else self.folder / CONFIG
            if file is None or not file.is_file():
                return dict(self.known.config), self.known.name
        else:
            file = self._config_file
        return read_json(file), str(file)

    @property
    def _config_file(self) -> Path:
        if self.path is not None and self.path.is_dir():
            return self.path / CONFIG
        if self.path is not None:
            return _of_settings(self.path)
        if not could_be_hub_id(self.name):
            raise ModelError(
                f"{shown(self.name)} is not a known model, a hub id, or a folder or file on this machine."
                f"{_listed(self.name)}"
            )
        return self._of_hub(CONFIG)

    def _of_hub(self, file: str) -> Path:
        return cached_file(self.name, file, self.revision) or _fetched(self.name, self.revision, file)

    def image_side(self, default_side: int) -> int:
        """Pixels a side of the images that the model's own processor makes; `default_side`, the size that its
        config.json has, where that alone is known."""
        file = None if self.folder is None or self.revision is not None else self.folder / PREPROCESSOR
        if file is None or not file.is_file():
            if self.path is not None:
                return default_side
            if self.known is not None:
                return self.known.image or default_side
            file = self._of_hub(PREPROCESSOR)
        return processing_of(read_json(file), str(file)).size or default_side


def shape_of_gguf(file: Path, build: Build, head: NewHead | None = None) -> ModelShape:
    header = read_gguf_header(file)
    config = config_of_gguf(header, file)
    shape = cached_shape(config, str(file), str(file), build)
    held = sum(math.prod(size) for name, size in header.tensors.items() if not name.startswith(NOT_OF_THE_MODEL))
    if held != shape.parameters:
        raise ModelError(
            f"{file}: the header describes a {shape.family} model with {shape.parameters:,} parameters, but the "
            f"tensors have {held:,}. The header is wrong, or this layout is not supported."
        )
    if head is not None:
        shape = cached_shape(config, str(file), str(file), build, head)
    return replace(shape, name=file.name, file_bytes=matrix_bytes(header))


def needs_hub(name: str, revision: str | None = None) -> bool:
    """Whether the hub would be asked for the shape of this model: it is not in the catalogue, and nothing of it is
    here."""
    here = path_here(name) is not None or (catalogue_model(name) is not None and revision is None)
    return not here and could_be_hub_id(name) and cached_file(name, CONFIG, revision) is None


def _of_settings(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file.")
    if path.suffix.lower() != ".json":
        raise ModelError(
            f"{path} is not a file that a plan can read. Give a config.json, a folder that contains one, a .gguf file, "
            "a name from rankwise plan --models, or a hub id."
        )
    return path


def _fetched(name: str, revision: str | None, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not hub_answers():
        raise ModelError(
            f'model "{name}" is not in the catalogue, not a folder or file here and not in the cache, and the hub '
            f"{why_silent()}.{_listed(name)}"
        )
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except GatedRepoError:
        raise ModelError(f'"{name}" is gated on the hub. Log in with "hf auth login" and try again.') from None
    except RepositoryNotFoundError:
        raise ModelError(f'the hub has no model "{name}".{_listed(name)}') from None
    except RevisionNotFoundError:
        raise ModelError(f'the hub has no revision "{revision}" of "{name}".') from None
    except EntryNotFoundError:
        raise ModelError(f'"{name}" has no {file} on the hub.') from None
    except Exception as error:  # whatever the client's transport raises when a connection ends in the middle
        raise ModelError(f'the {file} of "{name}" could not be downloaded: {first_line(error)}') from None


def _listed(name: str) -> str:
    """One of each family, since the list is long."""
    first = {model.family: model.name for model in reversed(catalogue().values())}
    examples = some(reversed(first.values()), 20)
    guess = did_you_mean(name.lower(), catalogue_names())
    return f"{guess} The catalogue has {len(catalogue())} models, such as {examples}."
