"""How much memory this process holds and has held, from a moment on that can be chosen.

The peak of a process (`peak_rss` of runs/manifest.py) has loading a model in it. Linux lets it be put back to what is
held now.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil


def resident() -> int:
    return psutil.Process().memory_info().rss


def forget_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
