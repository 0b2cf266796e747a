"""A lock on a file, which the system releases with the process that holds it, and the number of that process.

The file is opened without following links, and only a regular file of this name alone is taken: a link, a pipe, a
device or somebody else's file is refused and stays as it is. Whoever holds the lock can see that the file was removed
or replaced, which lets another process in. Windows locks the first byte against readers too, so the number begins at
the second.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from rankwise.errors import RunError
from rankwise.system.files import make_folders

NO_LINK_AND_NO_PIPE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
LARGEST = 64
"""Bytes of a lock file at most. What a killed process or a power failure left of one is no longer either."""
ATTEMPTS = 20
PATIENCE, BETWEEN = 0.3, 0.02
"""Seconds in which a lock may become free. Those who ask who holds it lock the file for a moment."""


class Lock:
    """A lock file that this process holds."""

    def __init__(self, path: Path) -> None:
        """RunError where the path is anything but a lock file; BlockingIOError where another process holds it."""
        self.path = path
        self._descriptor = _taken(path)

    @classmethod
    def with_folder(cls, path: Path) -> Lock:
        """Lock a file in a folder that is created if necessary, also while its last owner removes the folder."""
        for _ in range(ATTEMPTS):
            make_folders(path.parent)
            with suppress(FileNotFoundError):
                return cls(path)
        return cls(path)

    @property
    def is_there(self) -> bool:
        """Whether the path still names the locked file, so that nobody else can have locked it."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    @property
    def descriptor(self) -> int:
        """The number of the open file. A process that inherits it holds the lock as well, until both have ended."""
        return self._descriptor

    def take_again(self) -> None:
        """Lock the path anew after the file was removed. Errors are those of the first time."""
        again = _taken(self.path)
        os.close(self._descriptor)
        self._descriptor = again

    def remove(self) -> None:
        """Remove the file, if it still is the locked one."""
        if self.is_there:
            self.loosen()
            self.path.unlink()

    def loosen(self) -> None:
        """Release the lock on Windows, where neither an open file nor a folder around it can be removed or renamed. So
        where another process has taken the lock by then, the folder stays as it is."""
        if sys.platform == "win32":
            self.release()

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def locked_folder(within: Path) -> Iterator[Path]:
    """A temporary folder, which is removed with what is in it. Those that killed processes have left beside it are
    removed first."""
    for file in within.glob("tmp*/.lock"):
        with suppress(OSError, RunError):  # another process holds it
            left = Lock(file)
            left.loosen()
            shutil.rmtree(file.parent, ignore_errors=True)
            left.release()
    lock = Lock.with_folder(within / f"tmp{secrets.token_hex(6)}" / ".lock")
    try:
        yield lock.path.parent
    finally:
        lock.loosen()
        shutil.rmtree(lock.path.parent, ignore_errors=True)
        lock.release()


def owner_if_locked(file: Path) -> str | None:
    """The number of the process that holds the lock on a file, or None."""
    try:
        descriptor = os.open(file, os.O_RDONLY | NO_LINK_AND_NO_PIPE)
    except OSError:
        return None
    try:
        return None if _try_lock(descriptor) else _owner_of(descriptor)
    except OSError:  # a folder, or a disk that fails
        return None
    finally:
        os.close(descriptor)


def owner_of(file: Path) -> str:
    """The number of the process that locked a file last, "unknown" if it left none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | NO_LINK_AND_NO_PIPE)
        try:
            return _owner_of(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return "unknown"


def _taken(path: Path) -> int:
    """The open file, locked, with our number in it. One that its last owner removed while we waited is no lock."""
    while True:
        descriptor = _opened(path)
        try:
            until = time.monotonic() + PATIENCE
            while not _try_lock(descriptor):
                if time.monotonic() > until:
                    raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
                time.sleep(BETWEEN)
            if os.fstat(descriptor).st_nlink > 0:
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, f" {os.getpid()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _opened(path: Path) -> int:
    _refuse_foreign(path, os.lstat(path) if os.path.lexists(path) else None)  # opening a device may do something
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK_AND_NO_PIPE, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:  # it became a link just now
            _refuse_foreign(path, os.lstat(path))
        raise
    try:
        _refuse_foreign(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_foreign(path: Path, there: os.stat_result | None) -> None:
    if there is None:
        return
    if not S_ISREG(there.st_mode):
        problem = f"is a link to {os.readlink(path)}" if path.is_symlink() else "is not a regular file"  # noqa: PTH115
    elif there.st_nlink > 1:
        problem = "is another file as well (a hard link)"
    elif there.st_size > LARGEST:
        problem = f"has {there.st_size:,} bytes, so it is not a lock"
    else:
        return
    raise RunError(f"{path} {problem}. It should be a lock file of rankwise; nothing was changed. Remove it yourself.")


def _owner_of(descriptor: int) -> str:
    os.lseek(descriptor, 1, os.SEEK_SET)
    number = os.read(descriptor, 32).decode(errors="replace").strip()
    return number if number.isascii() and number.isdecimal() else "unknown"


def _try_lock(descriptor: int) -> bool:
    from filelock import lock_descriptor  # late: most commands lock nothing

    return lock_descriptor(descriptor, blocking=False)
