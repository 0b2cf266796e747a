"""Records as JSON lines, appended while a run works; a torn last line is left out when reading, not fatal."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rankwise.errors import RankwiseError, RunError
from rankwise.run.writing import told_when_full


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        with told_when_full(path):
            self._file = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        with told_when_full(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

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


def read_journal(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise RunError(f"{path}:{number}: is not a JSON record: {line[:60]!r}.") from None
    return rows
