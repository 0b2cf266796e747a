"""Our own cache: models made from other formats, rows that were encoded, what bases scored; each whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import platformdirs

KEPT_SECONDS = 30 * 86_400
SOURCE = "gguf_source.json"
"""In the folder of a model that was made from a GGUF file: what the file was called."""


def marked_folder(marker: Path) -> Path | None:
    """The folder of a model that was made from another format, which a file beside it names; None where it is gone."""
    name = marker.read_text(encoding="utf-8").strip() if marker.is_file() else ""
    folder = marker.parent / name
    return folder if name.startswith("gguf-") and folder.is_dir() else None


def source_of(folder: Path) -> str | None:
    """What a model was made from: the name of its file, or that of the starter whose it is; None where nobody knows."""
    try:
        named = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        named = None
    if isinstance(named, str):
        return named
    markers = (marker for marker in sorted(folder.parent.glob("*.folder")) if marked_folder(marker) == folder)
    return next((marker.name.rpartition("-")[0] for marker in markers), None)


def mark_used(folder: Path) -> None:
    """That a model of ours was asked for now; a folder that lies elsewhere is left as it is."""
    if folder.parent == cache_folder() / "models":
        with suppress(OSError):
            os.utime(folder)


def cache_folder() -> Path:
    """`RANKWISE_CACHE`, or `rankwise` in the user's cache folder (`XDG_CACHE_HOME` on Linux)."""
    named = os.environ.get("RANKWISE_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("rankwise"))


def forget_old(entries: Path) -> None:
    """What nobody has asked for in KEPT_SECONDS, by the time that stands at each entry: a folder or a file."""
    for entry in entries.iterdir():
        with suppress(OSError):  # another process may be doing the same
            if time.time() - entry.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
