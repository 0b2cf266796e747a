"""A lock on a file, which the system releases with the process that holds it, and the number of that process.

Windows locks the first byte against readers too, so the number begins at the second.
"""

from __future__ import annotations

import os
from pathlib import Path

NO_LINK_AND_NO_PIPE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def lock(descriptor: int) -> bool:
    """Lock an open file for this process and write its number; False if another process holds the lock."""
    if not _try_lock(descriptor):
        return False
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f" {os.getpid()}".encode())
    return True


def owner_of(descriptor: int) -> str:
    """The number of the process that locked the file last, "unknown" if it left none."""
    os.lseek(descriptor, 1, os.SEEK_SET)
    return os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"


def owner_if_locked(file: Path) -> str | None:
    """The number of the process that holds the lock on a file, or None."""
    try:
        descriptor = os.open(file, os.O_RDONLY | NO_LINK_AND_NO_PIPE)
    except OSError:
        return None
    try:
        return None if _try_lock(descriptor) else owner_of(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    from filelock import lock_descriptor  # late: most commands lock nothing

    return lock_descriptor(descriptor, blocking=False)
