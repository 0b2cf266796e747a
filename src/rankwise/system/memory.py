"""How much memory this process may still take."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS, OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def available_memory() -> int:
    """Bytes: what the machine has, or what the limits of the control groups that this process is in leave, whichever
    is least. Files that were read and can be forgotten count as free, as the machine's own figure has them."""
    return max(0, min([psutil.virtual_memory().available, *_left()]))


def give_back() -> None:
    """What was freed to the system, which glibc otherwise keeps for later: it counts as this process's until then."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _left() -> list[int]:
    found = []
    for folder, (limit, used) in _groups():
        try:
            largest = (folder / limit).read_text().strip()
            if largest != "max":
                found.append(int(largest) - int((folder / used).read_text()) + _forgettable(folder / "memory.stat"))
        except (OSError, ValueError):
            continue
    return found


def _groups() -> list[tuple[Path, tuple[str, str]]]:
    """The group of this process and those above it, by either version of the system."""
    try:
        lines = [line.split(":", 2) for line in OURS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        names, root = (V2, CGROUPS) if not controllers else (V1, CGROUPS / "memory")
        if controllers and "memory" not in controllers.split(","):
            continue
        inside = root / path.strip("/")
        found += [(folder, names) for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return found


def _forgettable(stat: Path) -> int:
    lines = dict(line.split() for line in stat.read_text().splitlines())
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
