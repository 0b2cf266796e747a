"""What was freed stays with the process, where glibc is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, psutil, sys
from rankwise.system.memory import keep_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "keep":
    assert keep_memory() and keep_memory()
piece = libc.malloc(200_000_000)
ctypes.memset(piece, 1, 200_000_000)
libc.free(piece)
print(psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_was_freed_stays():
    kept, freed = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True, text=True).stdout)
        for how in ("keep", "free")
    )
    assert kept - freed > 150_000_000
