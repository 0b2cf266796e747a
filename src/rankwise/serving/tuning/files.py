"""Uploaded files: `runs/.fine-tuning/files/ID/{file.json, content.jsonl, pairs.jsonl}`, each whole or not there.

`content.jsonl` is what was uploaded, byte for byte. Pairs of answers in OpenAI's form are written once more as rankwise
reads them, line by line (`pairs.jsonl`). The names of folders are ids that the server drew; a client's name for its
file is shown and nothing else.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rankwise.config.base import Config
from rankwise.data.preparing import forget
from rankwise.errors import ResourceError, RunError
from rankwise.runs.own_files import read_json
from rankwise.serving.bodies import BadRequest
from rankwise.serving.tuning.identity import FILE, checked_id, new_id, no_such
from rankwise.system.files import make_folders, published, write_json

LARGEST_FILE = 512 * 10**6
"""Bytes, as OpenAI allows them."""
MOST_FILES, MOST_BYTES = 1000, 20 * 10**9
LONGEST_NAME = 255
CONTENT, PAIRS, FACTS = "content.jsonl", "pairs.jsonl", "file.json"
Purpose = Literal["fine-tune", "fine-tune-results"]


class Content(Config):
    """What the check of the file found out."""

    rows: int = 0
    pairs: bool = False
    """Whether its rows are pairs of answers."""
    ignored: tuple[str, ...] = ()
    """Columns that have no effect on what is learned."""


class StoredFile(Config):
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    content: Content

    def as_json(self) -> dict[str, Any]:
        shown = self.model_dump(include={"id", "bytes", "created_at", "filename", "purpose"})
        return shown | {"object": "file", "status": "processed", "expires_at": None, "status_details": None}


@dataclass(frozen=True)
class Files:
    folder: Path
    """Of the files, each in a folder of its own."""
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def every(self) -> list[StoredFile]:
        """The newest first. What is not whole is left out."""
        files = list[StoredFile]()
        for folder in self.folder.glob(f"{FILE}-*"):
            with suppress(RunError):
                files.append(read_json(folder / FACTS, StoredFile))
        return sorted(files, key=lambda one: (one.created_at, one.id), reverse=True)

    def get(self, name: str, parameter: str | None = None) -> StoredFile:
        """BadRequest (404) where there is none."""
        try:
            return read_json(self._folder_of(name, parameter) / FACTS, StoredFile)
        except RunError:
            raise no_such(FILE, name, parameter) from None

    def content(self, name: str) -> Path:
        return self._folder_of(self.get(name).id) / CONTENT

    def training(self, file: StoredFile) -> Path:
        """What a training reads."""
        return self._folder_of(file.id) / (PAIRS if file.content.pairs else CONTENT)

    def add(
        self, filename: str, purpose: Purpose, fill: Callable[[Path], None], check: Callable[[Path], Content]
    ) -> StoredFile:
        """`fill` writes the content to a path; `check` raises where it cannot be used."""
        with self._changing:
            there = self.every()
            if len(there) >= MOST_FILES or sum(one.bytes for one in there) > MOST_BYTES:
                raise BadRequest(
                    f"this server stores {MOST_FILES:,} files and {MOST_BYTES / 1e9:.0f} GB at most. Delete some.",
                    parameter="file",
                )
            make_folders(self.folder)
            name = new_id(FILE)
            with _room(), published(self.folder / name) as folder:
                fill(folder / CONTENT)
                content = check(folder)
                stored = StoredFile(
                    id=name, bytes=(folder / CONTENT).stat().st_size, created_at=int(time.time()),
                    filename=shown_name(filename), purpose=purpose, content=content,
                )  # fmt: skip
                write_json(folder / FACTS, stored.model_dump(mode="json"))
            return stored

    def delete(self, name: str) -> None:
        """With what trainings have encoded of it."""
        folder = self._folder_of(self.get(name).id)
        forget(name)
        with self._changing:
            (folder / FACTS).unlink(missing_ok=True)  # without it, the file does not exist for any reader
            shutil.rmtree(folder, ignore_errors=True)

    def _folder_of(self, name: str, parameter: str | None = None) -> Path:
        return self.folder / checked_id(FILE, name, parameter)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except ResourceError:
        raise BadRequest("the server's disk is full.", status=507, parameter="file") from None


def shown_name(name: str) -> str:
    """A client's name for its file, without folders and without what a terminal would act on."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(one if one.isprintable() else "?" for one in last)[:LONGEST_NAME] or "file.jsonl"
