"""Follow a metrics log that another process writes: complete lines only, and again where the log was cut.

A run that goes back to a checkpoint writes its log anew up to there; the file is then another one, or shorter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class LogTail:
    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    """All records so far."""
    _file: tuple[int, int] | None = None
    _offset: int = 0

    def new(self) -> Sequence[dict[str, Any]]:
        """The records since the last call. Those that a shortened log still has are not new."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                identity, before = (facts.st_dev, facts.st_ino), list[dict[str, Any]]()
                if identity != self._file or facts.st_size < self._offset:
                    before, self.rows, self._offset, self._file = self.rows, [], 0, identity
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return ()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        read = [row for line in whole.splitlines() if (row := _row(line)) is not None]
        self.rows += read
        same = next((at for at, pair in enumerate(zip(before, read, strict=False)) if pair[0] != pair[1]), len(before))
        return read[min(same, len(read)) :]


def _row(line: bytes) -> dict[str, Any] | None:
    """None for what is not a record, which whoever reads the whole run reports."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("kind"), str) else None
