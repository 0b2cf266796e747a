"""The processor of this machine: its name, what it computes fast, how many cores this process may use, and how long a
thread that has done its part of an operation keeps a core while it waits for the others.

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
import time
from contextlib import suppress
from pathlib import Path

from rankwise.system.launched import processes_here

SPINS = 20_000
"""About a millisecond, where a round takes some 50 nanoseconds."""
USER_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""The variables by which users choose a policy themselves."""
MAPS, CPUINFO = Path("/proc/self/maps"), Path("/proc/cpuinfo")
SIDE, MEASURED_FOR = 1024, 0.1
"""Rows and columns of the matrices whose product is timed, and for how many seconds that is repeated."""
MOST_THREADS = 64
"""numpy's library uses no more."""
HALF_RATE = "avx512_bf16 at half the rate of float32"
"""In place of `avx512_bf16` where a processor has the instruction and is slower for it."""
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Flags of processors that multiply faster in it than in float32."""
INT8 = ("avx512_vnni", "amx_int8")
"""Flags of processors that multiply numbers in int8 twice as fast as in bfloat16."""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    return _listed("model name") or platform.processor() or platform.machine()


def processor_vendor() -> str:
    """As the processor calls its maker, such as `GenuineIntel`; empty where the system does not tell it."""
    return _listed("vendor_id") or platform.processor()


def processor_flags() -> frozenset[str]:
    """The names of its instructions that Linux lists; none on other systems."""
    return frozenset(_listed("flags|Features").split())


def _listed(name: str) -> str:
    """What Linux says of the first core under this name; empty on other systems."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    line = re.search(rf"^(?:{name})\s*:\s*(.*)$", text, re.MULTILINE)
    return "" if line is None else line[1].strip()


def with_rates(flags: frozenset[str], vendor: str) -> frozenset[str]:
    """`flags` with `HALF_RATE` where it holds: on Intel's processors since Sapphire Rapids (they have AVX512-FP16), of
    which a virtual machine may show all but AMX."""
    slow = "GenuineIntel" in vendor and {"avx512_bf16", "avx512_fp16"} <= flags and "amx_bf16" not in flags
    return (flags - {"avx512_bf16"}) | {HALF_RATE} if slow else flags


def is_fast_in_int8(flags: frozenset[str]) -> bool:
    """Whether products of numbers in int8 are faster than others, and oneDNN, which computes them, is not told to use
    less than the processor has."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    return not flags.isdisjoint(INT8) and (
        allowed in ("ALL", "DEFAULT") or allowed.startswith(("AVX512_CORE_", "AVX10"))
    )


def float32_rate() -> float:
    """Operations that all cores together make in a second, by the fastest of some matrix products of numpy. One of
    several processes has a part of the cores, and its rate counts for the others too."""
    import numpy as np  # takes a tenth of a second

    cores, square, seconds = usable_cores(), np.ones((SIDE, SIDE), np.float32), list[float]()
    while len(seconds) < 3 or sum(seconds) < MEASURED_FOR:
        began = time.perf_counter()
        _ = square @ square
        seconds.append(time.perf_counter() - began)
    given = re.match(r"[1-9]\d*", os.environ.get("OMP_NUM_THREADS", "")) if processes_here() > 1 else None
    return 2 * SIDE**3 / min(seconds) * cores / min(cores, MOST_THREADS, int(given[0]) if given else cores)


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
