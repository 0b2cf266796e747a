"""One file operation of a process fails, as on a broken or full disk, or the process dies in it.

Operations are counted that change the disk: opening a file to write, flushing it, making, renaming and removing files
and folders. Those outside the given folder do not count.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["an I/O error", "no space left", "death of the process"]
KINDS: tuple[Kind, ...] = ("an I/O error", "no space left", "death of the process")
ERRORS = {"an I/O error": errno.EIO, "no space left": errno.ENOSPC}
OPERATIONS = ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "ftruncate")
WRITING = set("wax+")


@dataclass(frozen=True)
class Fault:
    """The operation with this number, counted from 1, fails; with number 0 none does. `count` is a file into which the
    number of operations so far is written."""

    number: int
    kind: Kind
    count: Path | None = None


class _Counter:
    def __init__(self, fault: Fault, folder: Path) -> None:
        self.fault, self.folder, self.number = fault, f"{folder.resolve()}{os.sep}", 0

    def concerns(self, target: object) -> bool:
        if isinstance(target, int):
            return True
        return os.path.abspath(os.fsdecode(target)).startswith(self.folder)  # type: ignore[arg-type]  # noqa: PTH100

    def step(self, target: object) -> None:
        if not self.concerns(target):
            return
        self.number += 1
        if self.fault.count is not None:
            descriptor = _open(self.fault.count, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, f"{self.number:6d}".encode())
            os.close(descriptor)
        if self.number == self.fault.number:
            if self.fault.kind == "death of the process":
                os._exit(9)
            code = ERRORS[self.fault.kind]
            raise OSError(code, os.strerror(code), None if isinstance(target, int) else os.fsdecode(target))  # type: ignore[arg-type]


_open = os.open


def fail_at(fault: Fault, folder: Path) -> None:
    """From now on in this process."""
    counter = _Counter(fault, folder)

    def counted(name: str) -> Callable[..., Any]:
        operation = getattr(os, name)

        def call(target: Any, *more: Any, **named: Any) -> Any:
            counter.step(target)
            return operation(target, *more, **named)

        return call

    def opened(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if WRITING & set(mode) and not isinstance(file, int):
            counter.step(file)
        return opening(file, mode, *more, **named)

    opening = builtins.open
    for name in OPERATIONS:
        setattr(os, name, counted(name))
    builtins.open = io.open = opened
