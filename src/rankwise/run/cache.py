"""Our own cache: models made from other formats, and rows that were encoded, each folder whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """`RANKWISE_CACHE`, or `rankwise` in the user's cache folder (`XDG_CACHE_HOME` on Linux)."""
    named = os.environ.get("RANKWISE_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("rankwise"))
