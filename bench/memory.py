"""How much memory this process holds and has held, from a moment on that can be chosen.

The peak that the system tells of a process (`peak_rss` of run/manifest.py) begins with that of the process which
started it, and has loading a model in it. Linux keeps another, which is the process's own and can be put back to what
is held now; elsewhere the first is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from rankwise.run.manifest import peak_rss


def resident() -> int:
    return psutil.Process().memory_info().rss


def forget_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes held since `forget_peak`."""
    if sys.platform != "linux":
        return peak_rss()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
