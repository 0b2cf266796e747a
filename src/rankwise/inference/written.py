"""What a base wrote by itself, in the cache: a file of tensors whose name covers everything that they depend on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rankwise.errors import RankwiseError
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import write_atomic


def entry(folder: str, version: int, model: LoadedModel, *parts: object) -> Path:
    """The file of what this model writes, as it is loaded; `parts` are what else decides it."""
    facts = model.facts
    whole = (version, facts.fingerprint, facts.dtype, facts.quantization, model.tokenizer.identity, *parts)
    return cache_folder() / folder / f"{sha256(repr(whole).encode()).hexdigest()}.safetensors"


def recalled(file: Path) -> dict[str, Tensor]:
    """Nothing where the file is missing or damaged."""
    try:
        tensors = load_file(file)
        os.utime(file)  # mark as used
        return tensors
    except (OSError, SafetensorError, ValueError):
        return {}


def store(file: Path, tensors: Mapping[str, Tensor], what: str, callback: Callback) -> None:
    """A failure is only reported, since it merely costs the time to write the text again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save(dict(tensors)))
        with suppress(OSError):
            forget_old(file.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"{what} could not be cached: {error}"))
