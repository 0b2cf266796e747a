"""Our own cache: models made from other formats, and rows that were encoded, each folder whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def marked_folder(marker: Path) -> Path | None:
    """The folder of a model that was made from another format, which a file beside it names; None where it is gone."""
    name = marker.read_text(encoding="utf-8").strip() if marker.is_file() else ""
    folder = marker.parent / name
    return folder if name.startswith("gguf-") and folder.is_dir() else None


def cache_folder() -> Path:
    """`RANKWISE_CACHE`, or `rankwise` in the user's cache folder (`XDG_CACHE_HOME` on Linux)."""
    named = os.environ.get("RANKWISE_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("rankwise"))
