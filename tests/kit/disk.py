"""No test waits for the disk: what is flushed matters after a power failure alone, and none has a real one.

On a common disk a flush takes 7 ms, and a tiny training makes dozens of them. Tests of flushes watch the calls
(file_faults.py).
"""

from __future__ import annotations

import os


def unflushed(file: int) -> None:
    """In place of os.fsync, which refuses as this does what is no open file."""
    os.fstat(file)
