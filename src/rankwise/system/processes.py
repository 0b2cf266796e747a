"""Processes that outlive the one that started them, and whether a recorded one still runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

POSIX = os.name == "posix"
FLAGS = 0 if POSIX else 0x8000200
"""On Windows: a process group of its own, and a console of its own without a window."""
_started: list[subprocess.Popen[bytes]] = []
"""The processes that this one started. Ended ones are waited for when the next starts, so that no zombie stays."""


def start_detached(
    command: Sequence[str],
    *,
    out: IO[bytes],
    log: IO[bytes],
    folder: Path | None = None,
    inherits: tuple[int, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """In a session of its own, so that neither Ctrl-C nor a closed terminal ends it. It inherits these open files,
    except on Windows. `environment` is added to that of this process."""
    _started[:] = [one for one in _started if one.poll() is None]
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
        creationflags=FLAGS, pass_fds=inherits if POSIX else (), env=os.environ | (environment or {}),
    )  # fmt: skip
    _started.append(process)
    return process


def began(number: int) -> float | None:
    """When a process began, which tells it from a later one of the same number; None where it has ended."""
    try:
        process = psutil.Process(number)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
