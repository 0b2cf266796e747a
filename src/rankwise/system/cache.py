"""The cache folder: converted models, encoded rows and scores of base models. Each entry is complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import platformdirs

from rankwise.system.extras import installed_version

KEPT_SECONDS = 30 * 86_400
MOST_BYTES = 20 * 10**9
"""The most bytes that the computed entries of one kind may take. The newest stays in any case."""
GGUF_FOLDER, STARTER_FOLDER, QUANTIZED_FOLDER = "gguf-", "starter-", "quantized-"
"""How the names of cached models begin: converted GGUF files, starters that came as a folder, and weights in fewer
bits."""
SOURCE = "gguf_source.json"
"""File in the folder of a converted model that names its GGUF file."""


def marked_folder(marker: Path) -> Path | None:
    """The folder of a converted model that the marker file names; None if it does not exist any more."""
    name = marker.read_text(encoding="utf-8").strip() if marker.is_file() else ""
    folder = marker.parent / name
    return folder if name.startswith((GGUF_FOLDER, STARTER_FOLDER)) and folder.is_dir() else None


def source_of(folder: Path) -> str | None:
    """The name of the file or the starter that a model was converted from; None if unknown."""
    try:
        named = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        named = None
    if isinstance(named, str):
        return named
    markers = (marker for marker in sorted(folder.parent.glob("*.folder")) if marked_folder(marker) == folder)
    return next((marker.name.rpartition("-")[0] for marker in markers), None)


def mark_used(folder: Path) -> None:
    """Record that a model in the cache was used now. A folder outside the cache is not changed."""
    if folder.parent in (cache_folder() / "models", cache_folder() / "gguf"):
        with suppress(OSError):
            os.utime(folder)


def cache_folder() -> Path:
    """`RANKWISE_CACHE`, or `rankwise` in the user's cache folder (`XDG_CACHE_HOME` on Linux)."""
    named = os.environ.get("RANKWISE_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("rankwise"))


def forget_old(entries: Path) -> None:
    """Remove entries that were not used for KEPT_SECONDS, by their modification time, and the oldest of those that are
    whole where all of them have more than MOST_BYTES."""
    found, total = list[tuple[float, int, Path]](), 0
    for entry in entries.iterdir():
        with suppress(OSError):  # another process may be removing it too
            inside = [] if entry.name.startswith(".") else [entry, *entry.rglob("*")]  # unfinished and being written
            found.append((entry.stat().st_mtime, sum(one.stat().st_size for one in inside if one.is_file()), entry))
    for used, size, entry in sorted(found, reverse=True):
        total += size
        if (0 < size < total and total > MOST_BYTES) or time.time() - used > KEPT_SECONDS:
            with suppress(OSError):
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()


@cache
def our_own() -> str:
    """A hash of rankwise's code and of the versions of the libraries that render and tokenize."""
    package = Path(__file__).parents[1]
    code = b"".join(file.read_bytes() for file in sorted([*package.rglob("*.py"), *package.rglob("*.yaml")]))
    return " ".join([sha256(code).hexdigest(), *map(installed_version, ("transformers", "tokenizers"))])
