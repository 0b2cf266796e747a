"""Follow a metrics log that another process writes: what is new since a position, in complete lines only.

A position is `BYTES-CHECKSUM`: how many bytes were read, and a checksum of the last of them. A log that was cut or
begun anew does not have these bytes before the position, so it is read again from its beginning.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

PIECE = 16_000_000
"""Bytes that are read at once."""
CHECKED = 256
_POSITION = re.compile(r"(\d{1,15})-([0-9a-f]{8})")


@dataclass
class LogTail:
    path: Path
    offset: int = 0
    checksum: str = field(default_factory=lambda: _checksum(b""))
    _seen: tuple[int, int, int] | None = None

    @classmethod
    def after(cls, path: Path, position: str) -> LogTail:
        """Go on where an earlier reader stopped; at the beginning where the position is not one."""
        match = _POSITION.fullmatch(position)
        return cls(path) if match is None else cls(path, int(match[1]), match[2])

    @property
    def position(self) -> str:
        return f"{self.offset}-{self.checksum}"

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the log begins anew, and the new records. A line that is not whole waits for the next time."""
        try:
            facts = self.path.stat()
            if not self.path.is_file() or (stamp := (facts.st_ino, facts.st_size, facts.st_mtime_ns)) == self._seen:
                return False, []
            with self.path.open("rb") as file:
                anew = not self._continues(file)
                if anew:
                    self.offset, self.checksum = 0, _checksum(b"")
                file.seek(self.offset)
                piece = file.read(PIECE)
                whole = piece[: piece.rfind(b"\n") + 1]
                self.offset += len(whole) if whole or len(piece) < PIECE else PIECE  # no line of a run is that long
                file.seek(max(0, self.offset - CHECKED))
                self.checksum = _checksum(file.read(min(CHECKED, self.offset)))
        except OSError:  # it is not there yet, or was just replaced
            if self.offset == 0:
                return False, []
            self.offset, self.checksum, self._seen = 0, _checksum(b""), None
            return True, []
        self._seen = stamp if len(piece) < PIECE else None
        return anew, [row for line in whole.splitlines() if (row := _row(line)) is not None]

    def _continues(self, file: BinaryIO) -> bool:
        file.seek(max(0, self.offset - CHECKED))
        before = file.read(min(CHECKED, self.offset))
        return len(before) == min(CHECKED, self.offset) and _checksum(before) == self.checksum


def _row(line: bytes) -> dict[str, Any] | None:
    """None for what is not a record, which whoever reads the whole run reports."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("kind"), str) else None


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
