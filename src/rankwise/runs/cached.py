"""Entries of rankwise's cache folder, and their removal.

An entry can always be made again: a converted model, a starter, encoded rows, scores of a base model, an unfinished
download, code compiled by torch. Only files and folders with the names that rankwise gives them are entries. Everything
else in the folder is counted but never removed, and links are not followed. Entries that a running process has open,
maps or writes are kept.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from rankwise.runs.listing import folder_bytes
from rankwise.system.cache import cache_folder, marked_folder, source_of
from rankwise.system.files import move, told_when_full


@dataclass(frozen=True)
class Kind:
    """A kind of entry; `names` is a pattern for their names. If `is_single`, the folder is one entry. If `settles`, an
    entry counts as in use for a while after its last change."""

    folder: str
    names: str
    about: str
    is_single: bool = False
    settles: bool = False


KINDS = {
    "downloads": Kind("downloads", r"tmp\w+", "unfinished downloads", settles=True),
    "models": Kind(
        "models",
        r"(gguf-|starter-.+-)[0-9a-f]{16}|quantized-\w+-[0-9a-f]{16}-[0-9a-f]{8}",
        "converted models and starters",
    ),
    "gguf": Kind("gguf", r"[0-9a-f]{16}", "settings and tokenizers of GGUF files"),
    "rows": Kind("encoded", r"[0-9a-f]{64}", "encoded rows"),
    "anchors": Kind("anchors", r"[0-9a-f]{64}\.safetensors", "text that base models wrote, for anchors"),
    "answers": Kind("answers", r"[0-9a-f]{64}\.safetensors", "answers of base models, for replay"),
    "scores": Kind("scores", r"[0-9a-f]{64}\.json", "scores of base models"),
    "references": Kind("references", r"[0-9a-f]{64}\.json", "what preference pairs are compared with"),
    "shapes": Kind("shapes", r"[0-9a-f]{64}\.json", "shapes of models, for plans"),
    "compiled": Kind("compiled", r".*", "code that torch compiled", is_single=True, settles=True),
}
OTHER = "other"
SETTLING_SECONDS = 600
"""Seconds after its last change during which an entry that `settles` counts as in use."""
_UNFINISHED = re.compile(r"\.(?P<name>.+?)(\.t\d+)?\.(?P<process>\d+)\.tmp")


@dataclass(frozen=True)
class Cached:
    """One entry. `source` is the file that it was made from, if known; `in_use` says what uses it, or is None."""

    kind: str
    path: Path
    bytes: int
    last_used: str
    source: str | None = None
    in_use: str | None = None

    @property
    def age(self) -> float:
        """Seconds."""
        return time.time() - datetime.fromisoformat(self.last_used).timestamp()


def cached_entries() -> list[Cached]:
    """List all entries by kind, the largest first."""
    root, found = cache_folder(), []
    if not root.is_dir():
        return []
    busy = _used_files(root)
    for kind in KINDS:
        found += sorted(_entries(root, kind, busy), key=lambda item: -item.bytes)
    known = {one.path for one in found}
    markers = set((root / "models").glob("*.folder"))
    return [*found, *_unknown_files(root, known | markers)]


def _entries(root: Path, kind: str, busy: dict[str, str]) -> Iterator[Cached]:
    what = KINDS[kind]
    folder = root / what.folder
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in [folder] if what.is_single else folder.iterdir():
        unfinished = _UNFINISHED.fullmatch(path.name)
        name = unfinished["name"] if unfinished else path.name
        if path.is_symlink() or not (what.is_single or re.fullmatch(what.names, name)):
            continue
        with suppress(FileNotFoundError):  # removed meanwhile
            when = _last_change(path) if what.settles else path.lstat().st_mtime
            used = _writer(unfinished) or _user(path, busy) or _settling(what, when)
            source = source_of(path) if kind == "models" else None
            yield Cached(kind, path, _size(path), _timestamp(when), source, used)


def _unknown_files(root: Path, known: set[Path]) -> Iterator[Cached]:
    """List files that rankwise did not make, and links, without descending into them."""
    parts = {root / kind.folder for kind in KINDS.values()}
    for path in sorted(root.iterdir()):
        within = sorted(path.iterdir()) if path in parts and path.is_dir() and not path.is_symlink() else [path]
        for one in within if path not in known else ():
            if one not in known:
                yield Cached(OTHER, one, _size(one), _timestamp(one.lstat().st_mtime))


def _size(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size


def _last_change(path: Path) -> float:
    inside = (os.path.join(place, name) for place, _, files in os.walk(path) for name in files)  # noqa: PTH118
    return max([path.lstat().st_mtime, *(os.lstat(file).st_mtime for file in inside)])


def _timestamp(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")


def _writer(unfinished: re.Match[str] | None) -> str | None:
    alive = unfinished is not None and psutil.pid_exists(int(unfinished["process"]))
    return f"process {unfinished['process']} is writing it" if unfinished is not None and alive else None


def _settling(what: Kind, when: float) -> str | None:
    recent = what.settles and time.time() - when < SETTLING_SECONDS
    return f"it was changed less than {SETTLING_SECONDS // 60} minutes ago" if recent else None


def _user(path: Path, busy: dict[str, str]) -> str | None:
    here = str(path.resolve())
    return next((who for file, who in busy.items() if file == here or file.startswith(f"{here}{os.sep}")), None)


def _used_files(root: Path) -> dict[str, str]:
    """Map files below `root` to the process that has them open or mapped, for all processes visible to this user."""
    below, found = f"{root.resolve()}{os.sep}", dict[str, str]()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            files = [file.path for file in process.open_files()]
            maps = Path("/proc", str(process.pid), "maps")
            lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.is_file() else ()
            files += [line[line.index("/") :].removesuffix(" (deleted)") for line in lines if "/" in line]
            found |= {file: f"process {process.pid} has it open" for file in files if file.startswith(below)}
    return found


def remove(entry: Cached) -> None:
    """Remove an entry, after renaming it so that no process sees half of it. A model's marker file is removed with
    it."""
    leaving = entry.path.with_name(f".{entry.path.name.lstrip('.')}.{os.getpid()}.tmp")
    with told_when_full(entry.path), suppress(FileNotFoundError):  # another process may be doing the same
        for marker in entry.path.parent.glob("*.folder") if entry.kind == "models" else ():
            if marked_folder(marker) == entry.path:
                marker.unlink()
        move(entry.path, leaving)
        shutil.rmtree(leaving) if leaving.is_dir() else leaving.unlink()
