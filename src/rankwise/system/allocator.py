"""Keep freed memory in the process, so that the next training step can use it again.

glibc returns large blocks to the system at once, and the system clears each page again at the next use, although every
step frees and allocates the same hundreds of megabytes. The setting holds for the whole process and cannot be undone,
so only commands that train and then end use it. With other C libraries nothing is changed.

oneDNN caches the code of matrix products by their sizes: 1,024 of them, 0.6 MB each. The sizes differ in every step and
hardly ever recur, so the cache is limited to what one step needs. oneDNN reads the limit once, before its first
product.
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
    """Change the allocator for the rest of the process. Returns whether that was possible."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS_KEPT))
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(what, value) for what, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_ARENA_MAX, 1)))
