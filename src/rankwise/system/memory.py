"""The memory that this process can still use, and what it does with memory that it has freed.

glibc returns large blocks to the system at once, and the system clears each page again at the next use, although every
step of a training frees and allocates the same hundreds of megabytes. `keep_memory` ends that for the whole process and
cannot be undone, so only commands that train and then end use it. With other C libraries nothing is changed.

oneDNN caches the code of matrix products by their sizes: 1,024 of them, 0.6 MB each. The sizes differ in every step and
hardly ever recur, so the cache is limited to what one step needs. oneDNN reads the limit once, before its first
product.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import psutil

from rankwise.system.launched import processes_here

CGROUPS, OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


LIMIT: ContextVar[int | None] = ContextVar("LIMIT", default=None)


def available_memory() -> int:
    """Free memory in bytes: the smallest of the machine's free memory and what the limits of this process's control
    groups, its own (`limited_memory`) and `ulimit -v` leave. File cache that can be dropped counts as free, as in the
    machine's own figure. Processes that train together on one machine share what is free."""
    free = min([psutil.virtual_memory().available, *_left()]) // processes_here()
    own = [] if (limit := LIMIT.get()) is None else [limit - psutil.Process().memory_info().rss]
    return max(0, min([free, *own, *_addresses_left()]))


@contextmanager
def limited_memory(limit: int | None) -> Iterator[None]:
    """Inside the block, what this process has resident counts against this many bytes. Nothing enforces it: whatever
    asks for free memory gets what is left of it."""
    token = LIMIT.set(limit)
    try:
        yield
    finally:
        LIMIT.reset(token)


def is_limited() -> bool:
    """Whether this process has a limit of its own."""
    return LIMIT.get() is not None


def _addresses_left() -> list[int]:
    """The bytes left under a limit of address space, below which torch's threads and compiled parts end without an
    error."""
    if sys.platform == "win32":
        return []
    import resource  # Windows has no such module

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if limit == resource.RLIM_INFINITY else [limit - psutil.Process().memory_info().vms]


def give_back() -> None:
    """Return freed memory to the system. Otherwise glibc keeps it for later, and it counts as used by this process."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _left() -> list[int]:
    found = []
    for folder, (limit, used) in _groups():
        try:
            largest = (folder / limit).read_text(encoding="utf-8").strip()
            if largest != "max":
                lines = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                cached = int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))  # can be dropped
                found.append(int(largest) - int((folder / used).read_text(encoding="utf-8")) + cached)
        except (OSError, ValueError):
            continue
    return found


def _groups() -> list[tuple[Path, tuple[str, str]]]:
    """The control group of this process and its parents, for both versions of control groups."""
    try:
        lines = [line.split(":", 2) for line in OURS.read_text(encoding="utf-8").splitlines()]
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


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1
PRODUCTS_KEPT = 256


@cache
def keep_memory() -> bool:
    """Change the allocator for the rest of the process. Returns whether that was possible."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS_KEPT))
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(what, value) for what, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_ARENA_MAX, 1)))
