"""Records as JSON lines, appended while a run works; a torn last line is left out when reading, not fatal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from rankwise.errors import RankwiseError, RunError
from rankwise.run.records import RankRecord
from rankwise.run.writing import told_when_full, write_atomic


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        with told_when_full(path):
            self._file = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        with told_when_full(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """To the disk itself: a checkpoint must not outlive the records before it."""
        with told_when_full(self._path):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with told_when_full(self._path):
                self._file.close()
        except (OSError, RankwiseError):
            if error is None:  # the error on the way out already says what went wrong
                raise


def cut_journal(path: Path, rows: list[dict[str, Any]]) -> None:
    """Leave the first lines, which read as `rows`."""
    lines = path.read_bytes().splitlines(keepends=True)
    write_atomic(path, b"".join(lines[: len(rows)]))


def read_journal(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):  # the last one may be torn
            if number < len(lines):
                raise RunError(
                    f"{path}:{number}: is not a JSON record: {line[:60].decode(errors='replace')!r}."
                ) from None
    return rows


def read_ranks(path: Path) -> list[RankRecord]:
    """How ranks were given out while a run trained; none where they were fixed."""
    try:
        rows = read_journal(path)
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a whole run.") from None
    kept = [row for row in rows if isinstance(row, dict) and row.pop("kind", None) == "ranks"]
    try:
        return TypeAdapter(list[RankRecord]).validate_json(json.dumps(kept), strict=True)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        raise RunError(f"{path} is damaged: row {where[0]} of kind ranks has no good {where[-1]}.") from None
