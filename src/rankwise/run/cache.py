"""Our own cache: models made from other formats, rows that were encoded, what bases scored; each whole or not there."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import platformdirs

KEPT_SECONDS = 30 * 86_400


def marked_folder(marker: Path) -> Path | None:
    """The folder of a model that was made from another format, which a file beside it names; None where it is gone."""
    name = marker.read_text(encoding="utf-8").strip() if marker.is_file() else ""
    folder = marker.parent / name
    return folder if name.startswith("gguf-") and folder.is_dir() else None


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
