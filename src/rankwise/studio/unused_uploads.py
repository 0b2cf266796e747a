"""Uploads that no run and no entry of the queue names, and that can go.

An upload lies under the hash of its content (uploads.py), and whoever uses it has this hash in its settings: a run in
its config.json and in the copies of it beside its checkpoints, from which a damaged one is restored; an entry of the
queue in its own file. A young upload stays, since somebody may be filling in the form.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rankwise.runs.directory import SETTINGS
from rankwise.runs.listing import RUNS, folder_bytes, run_names
from rankwise.runs.queue import Queue
from rankwise.studio.uploads import ABOUT, FOLDER

YOUNG = 86_400.0
"""Seconds in which an upload stays in any case."""


@dataclass(frozen=True)
class Unused:
    digests: tuple[str, ...]
    bytes: int


def unused() -> Unused:
    """OSError where the settings of a run cannot be read, since it may use any of them."""
    old = [file for file in FOLDER.glob(f"*{ABOUT}") if time.time() - file.stat().st_mtime > YOUNG]
    if not old:
        return Unused((), 0)
    named = _settings()
    digests = sorted(digest for file in old if (digest := file.name.removesuffix(ABOUT)) not in named)
    return Unused(tuple(digests), sum(_bytes(part) for one in digests for part in _parts(one)))


def remove() -> Unused:
    gone = unused()
    for digest in gone.digests:
        for part in sorted(_parts(digest), key=lambda one: one.name.endswith(ABOUT)):  # what is noted goes last
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    return gone


def _settings() -> str:
    of_runs = [file for name in run_names() for where in ("", "checkpoints/*/")
               for file in (RUNS / name).glob(f"{where}{SETTINGS}")]  # fmt: skip
    files = [file for file in (*of_runs, *Queue().folder.rglob("*.json")) if file.is_file()]
    return "\n".join(file.read_text("utf-8", "replace") for file in files)


def _parts(digest: str) -> list[Path]:
    return [file for file in FOLDER.iterdir() if file.name.partition(".")[0] == digest]


def _bytes(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size
