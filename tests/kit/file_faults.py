"""A process whose Nth file operation fails, or in which it dies; and what a power failure leaves of the operations.

`watched(folder)` counts every operation that changes something under a folder: opening for writing, writing, flushing,
renaming, making and removing. It may record them, or let the Nth fail:

    EIO      it fails, and the next ones work
    ENOSPC   it fails, and so does every later one that needs room
    EROFS    it fails, and so does every later one, as where a file system is mounted read-only; EACCES as well
    EMFILE   it fails, and so does every later one that opens a file
    death    a write stops after half of its bytes, and the process is gone

`PowerFailure` replays a record. Of each folder, the operations since it was last flushed to the disk are lost from some
point on; of each file, what was written since it was last flushed is there, gone, cut or zeros.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
from safetensors import SafetensorError

MODES = ("EIO", "ENOSPC", "death")
DEATH = 9
EVERY = ("create", "write", "mkdir", "rename", "flush", "unlink", "rmdir")
FAILING_ON = {"ENOSPC": EVERY[:5], "EROFS": EVERY, "EACCES": EVERY, "EMFILE": EVERY[:1]}


@dataclass(frozen=True)
class Operation:
    kind: str
    path: str
    other: str = ""
    """The new name."""
    content: bytes | None = None
    """Of the whole file, after it was written."""
    number: int = 0
    """By which `Watch.until` names it: operations that failed by themselves are counted, and not recorded."""


@dataclass
class Watch:
    """`until` is the number of the operation that fails, from 0."""

    folder: str
    until: int | None = None
    mode: str = "death"
    records: bool = False
    operations: list[Operation] = field(default_factory=list)
    count: int = 0

    def __call__(self, kind: str, path: Any, other: Any = "", write: Callable[[], Any] | None = None) -> Any:
        """Count an operation and do it; `write` is what writes, in two halves where it can."""
        name = self._inside(path)
        if name is None:
            return write() if write else None
        number, self.count = self.count, self.count + 1
        if self.until is not None and (number == self.until or (number > self.until and self._fails_on(kind))):
            if self.mode == "death":
                os._exit(DEATH)
            code = getattr(errno, self.mode)
            raise OSError(code, os.strerror(code), name)
        done = write() if write else None
        if self.records:
            content = Path(name).read_bytes() if kind in ("write", "create") else None
            self.operations.append(Operation(kind, name, self._inside(other) or "" if other else "", content, number))
        return done

    def dies_next(self, path: Any) -> bool:
        return self.mode == "death" and self.count == self.until and self._inside(path) is not None

    def _fails_on(self, kind: str) -> bool:
        """Whether it fails on every operation of this kind from now on."""
        return kind in FAILING_ON.get(self.mode, ())

    def _inside(self, path: Any) -> str | None:
        name = os.path.abspath(os.fsdecode(path))
        return name if name == self.folder or name.startswith(self.folder + os.sep) else None


class _Writing:
    """An open file whose writes are counted."""

    def __init__(self, file: Any, path: Any, watch: Watch) -> None:
        self._file, self._path, self._watch = file, path, watch

    def write(self, content: Any) -> int:
        if self._watch.dies_next(self._path):
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        def write() -> int:
            count = self._file.write(content)
            self._file.flush()
            return count

        return self._watch("write", self._path, write=write)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@contextmanager
def watched(folder: Path, **how: Any) -> Iterator[Watch]:
    watch = Watch(os.path.abspath(folder), **how)
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink")}
    real_open, serialize = io.open, safetensors.torch.serialize_file

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **options)
        return _Writing(watch("create", file, write=lambda: real_open(file, mode, *args, **options)), file, watch)

    def within(path: Any, dir_fd: int | None) -> Any:
        return path if dir_fd is None else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))

    def os_open(path: Any, flags: int, *args: Any, dir_fd: int | None = None, **options: Any) -> int:
        act = lambda: real["open"](path, flags, *args, dir_fd=dir_fd, **options)  # noqa: E731
        return watch("create", within(path, dir_fd), write=act) if flags & os.O_CREAT else act()

    def fsync(number: int) -> None:
        watch("flush", os.readlink(f"/proc/self/fd/{number}"), write=lambda: real["fsync"](number))

    def moved(kind: str) -> Callable[..., None]:
        return lambda old, new, **at: watch("rename", old, new, write=lambda: real[kind](old, new, **at))

    def changed(kind: str) -> Callable[..., None]:
        def act(path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> None:
            watch(kind, within(path, dir_fd), write=lambda: real[kind](path, *args, dir_fd=dir_fd, **options))

        return act

    def serialized(tensors: Any, path: Any, *args: Any, **options: Any) -> None:
        try:
            watch("write", path, write=lambda: serialize(tensors, path, *args, **options))
        except OSError as error:  # the form of the library's own
            raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None

    replacements = {
        "os.open": os_open, "os.fsync": fsync, "os.rename": moved("rename"), "os.replace": moved("replace"),
        "os.mkdir": changed("mkdir"), "os.rmdir": changed("rmdir"), "os.unlink": changed("unlink"),
        "os.remove": changed("unlink"), "safetensors.torch.serialize_file": serialized,
    }  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(patch.object(io, "open", opened))
        stack.enter_context(patch.object(builtins, "open", opened))
        for name, act in replacements.items():
            stack.enter_context(patch(name, act))
        yield watch


@dataclass
class PowerFailure:
    """What may be on the disk when the power fails after the first `count` operations under `folder`."""

    folder: str
    operations: list[Operation]

    def write(self, count: int, to: Path, seed: int) -> None:
        """Write one such state into the folder `to`, which takes the place of `folder`."""
        chance, done = random.Random(seed), self.operations[:count]
        surviving = self._surviving(done, chance)
        names, contents = {}, dict[int, bytes]()  # what each name stands for, and what each file holds
        dirs = {self.folder}
        files, flushed = 0, dict[int, bytes]()
        live: dict[str, int] = {}
        for number, one in enumerate(done):
            if one.kind == "create" and one.path not in live:
                live[one.path], files = files, files + 1
            if one.kind in ("create", "write"):
                if one.path not in live:  # a file that the library made
                    live[one.path], files = files, files + 1
                contents[live[one.path]] = one.content or b""
            if one.kind == "flush" and one.path in live:
                flushed[live[one.path]] = contents.get(live[one.path], b"")
            before = dict(live)
            self._rename(live, one)
            if number in surviving:
                self._apply(names, dirs, one, before)
        for path in sorted(dirs):
            if self._is_reached(path, dirs):
                (to / os.path.relpath(path, self.folder)).mkdir(parents=True, exist_ok=True)
        for path, file in names.items():
            if self._is_reached(os.path.dirname(path), dirs):
                content = self._left(contents.get(file, b""), flushed.get(file), chance)
                (to / os.path.relpath(path, self.folder)).write_bytes(content)

    def _is_reached(self, path: str, dirs: set[str]) -> bool:
        """Whether a folder and all those above it are there."""
        while path != self.folder:
            if path not in dirs:
                return False
            path = os.path.dirname(path)
        return True

    def _surviving(self, done: list[Operation], chance: random.Random) -> set[int]:
        """Of each folder, the changes of its names up to some point since it was last flushed."""
        pending: dict[str, list[int]] = {}
        surviving = set[int]()
        for number, one in enumerate(done):
            if one.kind == "flush":
                surviving |= set(pending.pop(one.path, []))
            elif one.kind != "write" or not any(other.path == one.path for other in done[:number]):
                pending.setdefault(os.path.dirname(one.path), []).append(number)
        for changes in pending.values():
            surviving |= set(changes[: chance.randint(0, len(changes))])
        return surviving

    @staticmethod
    def _rename(live: dict[str, int], one: Operation) -> None:
        if one.kind == "rename":
            for path in [path for path in live if path == one.path or path.startswith(one.path + os.sep)]:
                live[one.other + path[len(one.path) :]] = live.pop(path)
        elif one.kind == "unlink":
            live.pop(one.path, None)

    @staticmethod
    def _apply(names: dict[str, int], dirs: set[str], one: Operation, live: dict[str, int]) -> None:
        if one.kind in ("create", "write") and one.path in live:
            names.setdefault(one.path, live[one.path])
        elif one.kind == "mkdir":
            dirs.add(one.path)
        elif one.kind == "unlink":
            names.pop(one.path, None)
        elif one.kind == "rmdir":
            dirs.discard(one.path)
            for path in [path for path in names if path.startswith(one.path + os.sep)]:
                names.pop(path)
        elif one.kind == "rename":
            moved = [path for path in names if path == one.path or path.startswith(one.path + os.sep)]
            for path in moved:
                names[one.other + path[len(one.path) :]] = names.pop(path)
            if one.path in live and not moved:  # the name under which it was written was lost, its new name was not
                names[one.other] = live[one.path]
            for path in [path for path in dirs if path == one.path or path.startswith(one.path + os.sep)]:
                dirs.discard(path)
                dirs.add(one.other + path[len(one.path) :])

    @staticmethod
    def _left(written: bytes, flushed: bytes | None, chance: random.Random) -> bytes:
        """Of a file: what was flushed, and of what was written since, anything."""
        if written == flushed:
            return written
        whole = flushed or b""
        rest = written[len(whole) :] if written.startswith(whole) else written
        half = rest[: len(rest) // 2]
        return chance.choice([written, whole, whole + half, whole + bytes(len(rest))])
