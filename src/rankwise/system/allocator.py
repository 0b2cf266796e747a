"""Memory that a step gave back is kept for the next one.

glibc hands large pieces back to the system at once, which then has to clear each page anew when it is touched: a step
frees and asks for the same hundreds of megabytes again and again. It holds for the whole process and cannot be undone,
so only a command that trains and then ends asks for it. Elsewhere than with glibc nothing is done.

oneDNN keeps the code of each product that it ever made, by its sizes: 1,024 of them, 0.6 MB each. Documents have other
sizes in every step and hardly one comes back, so it is told to keep what one step needs. It asks once, so this comes
before the first product.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1
PRODUCTS_KEPT = 256


@cache
def keep_memory() -> bool:
    """For the rest of the process; whether it could be done."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS_KEPT))
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(what, value) for what, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_ARENA_MAX, 1)))
