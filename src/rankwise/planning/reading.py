"""A model's name into its shape, without a weight: from the catalogue, a folder, a GGUF file, or the hub's config.json.

A name means what it means to a training: a starter, then what is on this disk. What the catalogue knows is answered
without a network; then the hub client's cache is looked into; and only what is nowhere is asked for, one small file. A
shape that neither the catalogue nor the cache has is built, by a function that the caller gives: building takes torch.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.config.base import shown
from rankwise.config.images import processing_of
from rankwise.errors import ModelError, did_you_mean, first_line, some
from rankwise.planning.catalogue import catalogue, catalogue_model, catalogue_names
from rankwise.planning.gguf_config import shape_of_gguf
from rankwise.planning.shape import ModelShape, NewHead
from rankwise.planning.shape_cache import Build, cached_shape
from rankwise.system.foreign_json import read_json
from rankwise.system.hub import could_be_hub_id, folder_here, hub_answers, why_silent

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
STARTERS = frozenset({"smollm2-135m", "minilm", "dinov2-small", "efficientnet-lite0"})
"""Names that a training takes before it looks at the disk (models/starters.py); a test compares both."""
LONGEST_NAME = 256


def read_shape(name: str, revision: str | None, build: Build, head: NewHead | None = None) -> ModelShape:
    """`name` is one of the catalogue, a folder with a config.json, that file, a .gguf file, or a model of the hub, of
    which `revision` may be another than the catalogue knows. With `head` it becomes a classifier, which the catalogue
    does not have."""
    known, path = catalogue_model(name), _path_of(name)
    here = path is not None and path.exists() and name not in STARTERS
    converted = folder_here(name) if known is not None and head is not None and head.image is not None else None
    if converted is not None and revision is None and not here:
        return _of_file(converted / CONFIG, name, build, head)
    if known is not None and revision is None and not here:
        return known.shape if head is None else cached_shape(dict(known.config), known.name, known.name, build, head)
    if path is not None and path.is_dir():
        return _of_file(path / CONFIG, name, build, head)
    if path is not None and path.exists():
        return _of_path(path, name, build, head)
    if not could_be_hub_id(name):
        raise ModelError(
            f"{shown(name)} is not a known model, a hub id, or a folder or file on this machine.{_listed(name)}"
        )
    return _of_file(_cached(name, revision) or _fetched(name, revision), name, build, head)


def read_image_side(name: str, revision: str | None) -> int | None:
    """Pixels a side of the images that the model's own processor makes; None where its config.json alone is known."""
    path, known = _path_of(name), catalogue_model(name)
    here = path is not None and path.exists() and name not in STARTERS
    folder = path if here else folder_here(name) if revision is None else None
    file = None if folder is None else folder / PREPROCESSOR
    if here or (file is not None and file.is_file()):
        return processing_of(read_json(file), str(file)).size if file is not None and file.is_file() else None
    if known is not None and revision is None:
        return known.image
    file = _cached(name, revision, PREPROCESSOR) or _fetched(name, revision, PREPROCESSOR)
    return processing_of(read_json(file), str(file)).size


def needs_hub(name: str, revision: str | None = None) -> bool:
    """Whether `read_shape` would ask the hub for this name: it is not in the catalogue, and nothing of it is here."""
    path = _path_of(name)
    here = (path is not None and path.exists()) or (catalogue_model(name) is not None and revision is None)
    return not here and could_be_hub_id(name) and _cached(name, revision) is None


def _path_of(name: str) -> Path | None:
    try:
        return Path(name).expanduser() if 0 < len(name) < LONGEST_NAME and "\0" not in name else None
    except RuntimeError:  # the home of nobody
        return None


def _of_path(path: Path, name: str, build: Build, head: NewHead | None) -> ModelShape:
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file.")
    if path.suffix.lower() == ".gguf":
        return shape_of_gguf(path, build, head)
    if path.suffix.lower() == ".json":
        return _of_file(path, name, build, head)
    raise ModelError(
        f"{path} is not a file that a plan can read. Give a config.json, a folder that contains one, a .gguf file, a "
        "name from rankwise plan --models, or a hub id."
    )


def _of_file(file: Path, name: str, build: Build, head: NewHead | None) -> ModelShape:
    return cached_shape(read_json(file), name, str(file), build, head)


def _cached(name: str, revision: str | None, file: str = CONFIG) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _fetched(name: str, revision: str | None, file: str = CONFIG) -> Path:
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
