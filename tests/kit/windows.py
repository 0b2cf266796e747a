"""What rankwise would meet on Windows, shown to it on this system, and to the processes that it starts.

Its own modules, and no library, see `sys.platform` as win32, and the standard library without what Windows lacks. The
whole process has Windows' rules for files: one that is open or mapped is neither removed nor renamed, nor is a folder
around it; nothing is renamed onto what is there; no folder is opened; only a file that may be written is flushed; links
need a right that users do not have; and some names are refused.

    python windows.py FOLDER COMMANDS        each of the commands (JSON) in one process, in that folder; prints a line
                                             of JSON for each: its exit code, and what it wrote on stdout and stderr
    python windows.py SCRIPT ARGUMENTS       a script of rankwise, as it starts them
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

OURS = str(Path(__file__).parents[2] / "src" / "rankwise") + os.sep
MISSING = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "posix", "syslog", "curses"}
"""Modules."""
SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
LACKED = {
    "os": """fork forkpty killpg setsid getpgid setpgid getpgrp getuid geteuid getgid getegid setuid setgid uname
        sched_getaffinity sched_setaffinity getloadavg mkfifo mknod chown lchown fchown pread pwrite statvfs sysconf
        confstr nice getpriority wait wait3 wait4 WNOHANG openpty ttyname ctermid sendfile posix_spawn O_NOFOLLOW
        O_NONBLOCK O_DIRECTORY O_CLOEXEC O_SYNC O_NOCTTY O_TMPFILE fchdir fchmod register_at_fork""",
    "sys": "abiflags getdlopenflags setdlopenflags", "time": "tzset pthread_getcpuclockid",
    "mmap": "MADV_DONTNEED MADV_WILLNEED MAP_PRIVATE MAP_SHARED MAP_ANONYMOUS PROT_READ PROT_WRITE",
    "select": "poll epoll kqueue", "socket": "AF_UNIX", "subprocess": "",
    "signal": """alarm pause setitimer getitimer ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF pthread_kill pthread_sigmask
        siginterrupt sigpending sigwait sigwaitinfo sigtimedwait SIG_BLOCK SIG_UNBLOCK SIG_SETMASK""",
}  # fmt: skip
"""What a module has here and not there."""


class Popen(subprocess.Popen):
    """As Windows starts a process: what POSIX alone knows is refused; a Python script meets the same Windows."""

    def __init__(self, args: Sequence[str], *more: Any, creationflags: int = 0, **named: Any) -> None:
        if named.get("preexec_fn") is not None or named.get("pass_fds"):
            raise ValueError("preexec_fn and pass_fds are not supported on Windows platforms")
        words = list(map(str, args))
        at = next((at for at, word in enumerate(words[1:], 1) if not word.startswith("-") or word in ("-m", "-c")), 1)
        if words[0] == sys.executable and words[at] != "-c":
            words[at:at] = [__file__]
        super().__init__(words, *more, **named)


def select(*_: Any) -> None:
    raise OSError(10038, "An operation was attempted on something that is not a socket")


GIVEN: dict[str, dict[str, Any]] = {
    "sys": {"platform": "win32"}, "os": {"name": "nt"}, "select": {"select": select},
    "signal": {"CTRL_C_EVENT": 0, "CTRL_BREAK_EVENT": 1}, "subprocess": {"Popen": Popen},
}  # fmt: skip


class Shown(ModuleType):
    """A module of the standard library as Windows has it."""

    def __init__(self, real: ModuleType) -> None:
        object.__setattr__(self, "real", real)

    def __getattribute__(self, name: str) -> Any:
        real = object.__getattribute__(self, "real")
        module = real.__name__
        if name in GIVEN.get(module, {}):
            return GIVEN[module][name]
        if name in LACKED[module].split() or (module == "signal" and name.startswith("SIG") and name not in SIGNALS):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "real"), name, value)


def hide() -> None:
    """Show rankwise's modules the standard library that Windows has."""
    found, imported = builtins.__import__, dict[str, Shown]()

    def shown(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        module = found(name, globals, locals, fromlist, level)
        if level or not str((globals or {}).get("__file__", "")).startswith(OURS):
            return module
        top = name.partition(".")[0]
        if top in MISSING:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        if module.__name__ in LACKED:
            return imported.setdefault(module.__name__, Shown(module))
        return module

    builtins.__import__ = shown
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"rankwise\b")


def held() -> Iterator[str]:
    """The files that this process has open or mapped."""
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        yield from {line[line.index("/") :].rstrip("\n") for line in maps if "/" in line}


def refuse_held(*paths: Any) -> None:
    for path in map(os.path.abspath, map(os.fsdecode, paths)):
        for one in held():
            if one == path or one.startswith(path + os.sep):
                raise PermissionError(errno.EACCES, f"{one} is being used by a process", path)


def rules(event: str, arguments: tuple[Any, ...]) -> None:
    """Windows' rules for files, at every call of Python, whoever makes it."""
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(("/proc", "/sys", "/dev")):
        path, mode, flags = arguments
        if mode is None and os.path.isdir(path):  # by os.open; others may have an opener of their own
            raise PermissionError(errno.EACCES, "Permission denied", path)
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse_name(path)
    elif event == "os.mkdir":
        refuse_name(os.fsdecode(arguments[0]))
    elif event == "os.symlink":
        raise OSError(errno.EINVAL, "A required privilege is not held by the client")
    elif event in ("os.remove", "os.rmdir"):
        refuse_held(arguments[0])
    elif event == "os.rename":
        refuse_name(os.fsdecode(arguments[1]))
        refuse_held(*arguments[:2])


def refuse_name(path: str) -> None:
    name = os.path.basename(path)
    if PureWindowsPath(name).is_reserved() or name.endswith((".", " ")) or set(name) & set('<>:"|?*'):
        raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", path)


def rule_files() -> None:
    rename, fsync = os.rename, os.fsync

    def windows_rename(before: Any, after: Any, **folders: Any) -> None:
        if os.path.lexists(after):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", after)
        rename(before, after, **folders)

    def windows_fsync(number: int) -> None:
        with open(f"/proc/self/fdinfo/{number}", encoding="utf-8") as facts:
            flags = int(facts.read().partition("flags:")[2].split()[0], 8)
        if not flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(number)

    os.rename, os.fsync = windows_rename, windows_fsync
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  folders are not opened
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile
    sys.addaudithook(rules)


def command(words: Sequence[str]) -> tuple[int, str, str]:
    """One command, on a console that has the characters of Western Europe."""
    from rankwise.cli.main import app

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2))
    code: Any = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            app(words)
        except SystemExit as end:
            code = end.code or 0
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(stream.encoding))  # type: ignore[attr-defined]
    return code, *texts


if __name__ == "__main__":
    hide()
    rule_files()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif sys.argv[1].endswith(".py"):
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        os.chdir(sys.argv[1])
        for words in json.loads(sys.argv[2]):
            print(json.dumps(command(words)), flush=True)
