"""The processor of this machine: its name, how many cores this process may use, and how long a thread that has done its
part of an operation keeps a core while it waits for the others.

torch divides each operation among threads, which meet at its end. GNU's OpenMP library, which torch brings on Linux,
lets a thread that is early spin for 300,000 rounds, some 15 milliseconds where a round is slow, before it sleeps. On an
idle machine the others are there within microseconds. Where another process has one of the cores, the thread that all
wait for is not running, and what the others spin away is the time in which it could run: a training was 3 to 30 times
slower. With SPINS rounds a thread outlasts the gaps between operations, which sleeping would make longer, and leaves
its core soon after.

OpenMP reads the setting once, when torch is loaded. What the user has set is left as it is.

Each thread that calls torch has workers of its own, which stay and sleep until it calls again. Where there are more
threads than cores, counting those that sleep, GNU's library lets none of them spin for long: they sleep and wake at the
end of every operation. So a thread that hands its work to another one lets its workers go.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

SPINS = 20_000
"""About a millisecond, where a round takes some 50 nanoseconds."""
USER_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""The variables by which users choose a policy themselves."""
MAPS = Path("/proc/self/maps")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def wait_briefly() -> None:
    """Let threads sleep early, in this process and in those that it starts; before torch is imported."""
    if not any(name in os.environ for name in USER_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def let_workers_go() -> None:
    """End the workers of the calling thread; it gets new ones when it needs them. With another system or library
    nothing is changed."""
    maps = MAPS.read_text(encoding="utf-8", errors="surrogateescape") if MAPS.exists() else ""
    for library in set(re.findall(r"/.*/libgomp[^/\n]*$", maps, re.MULTILINE)):
        with suppress(AttributeError, OSError):  # one of before 2019, or whose file is gone
            ctypes.CDLL(library).omp_pause_resource_all(1)  # which is "soft"
