"""A run's metrics log, followed while it grows: what is new since a position that a browser names.

    position = bytes read so far - checksum of the last of them

A log that was cut or begun anew does not have these bytes before the position, so it is read from its beginning. So a
browser that was away, by a reload or a closed lid, gets each record once, in order.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.reporting.sparkline import bucket_means
from rankwise.runs.layers import rank_grid

PIECE = 16_000_000
"""Bytes that are read at once."""
CHECKED = 256
MOST_STEPS = 2500
"""Steps of one message; more are sent as means of neighbours."""
COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "resident_bytes", "seconds")
_POSITION = re.compile(r"(\d{1,15})-([0-9a-f]{8})")


@dataclass
class Follower:
    """Reads the log of one run for one browser."""

    path: Path
    offset: int = 0
    checksum: str = field(default_factory=lambda: _checksum(b""))
    _seen: tuple[int, int, int] | None = None

    @classmethod
    def after(cls, path: Path, position: str) -> Follower:
        """From the beginning where the position is none."""
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
                anew = not self._continues(file.read, file.seek)
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

    def _continues(self, read: Any, seek: Any) -> bool:
        seek(max(0, self.offset - CHECKED))
        before = read(min(CHECKED, self.offset))
        return len(before) == min(CHECKED, self.offset) and _checksum(before) == self.checksum


def message(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The records as the page draws them: steps as columns, and the last of the rank allocations."""
    of = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("step", "validation", "score", "ranks")}
    totals = [row["steps"] for row in of["step"] if _is_count(row.get("steps"))]
    return {
        "steps": _thinned([one for row in of["step"] if (one := _numbers(row, COLUMNS)) is not None]),
        "of": totals[-1] if totals else None,
        "validation": [one for row in of["validation"] if (one := _point(row, "loss")) is not None],
        "scores": [[str(row.get("metric"))[:60], *one] for row in of["score"]
                   if (one := _point(row, "value")) is not None],
        "ranks": _grid(of["ranks"][-1]) if of["ranks"] else None,
    }  # fmt: skip


def _point(row: dict[str, Any], value: str) -> list[float | None] | None:
    """A step and its value, where both are numbers."""
    numbers = _numbers(row, ("step", value))
    return None if numbers is None or None in numbers else numbers


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _numbers(row: dict[str, Any], columns: Sequence[str]) -> list[float | None] | None:
    """A value that is not finite is None; None for a row whose first value is no number."""
    values = [row.get(name) for name in columns]
    finite = [
        float(one) if isinstance(one, int | float) and abs(one) < 1e300 and math.isfinite(one) else None
        for one in values
    ]
    return None if finite[0] is None else finite


def _thinned(steps: list[list[float | None]]) -> list[list[float | None]]:
    """Means of neighbouring steps, by column; the number of a step is that of the last of its neighbours."""
    if len(steps) <= MOST_STEPS:
        return steps
    ends = [round((at + 1) * len(steps) / MOST_STEPS) - 1 for at in range(MOST_STEPS)]
    columns = [
        bucket_means([math.nan if one is None else one for one in column], MOST_STEPS)
        for column in zip(*steps, strict=True)
    ]
    columns[0] = [float(steps[end][0] or 0) for end in ends]
    return [[one if math.isfinite(one) else None for one in row] for row in zip(*columns, strict=True)]


def _grid(row: dict[str, Any]) -> dict[str, Any] | None:
    ranks = row.get("ranks")
    if not isinstance(ranks, dict) or not all(_is_count(one) for one in ranks.values()):
        return None
    blocks, kinds, cells = rank_grid(ranks)
    return {
        **{name: row[name] if _is_count(row.get(name)) else None for name in ("step", "budget", "of")},
        "unit": str(row.get("unit"))[:40],
        "final": row.get("final") is True, "blocks": blocks[:200], "kinds": kinds[:40],
        "cells": [[cells.get((block, kind)) for kind in kinds[:40]] for block in blocks[:200]],
    }  # fmt: skip


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
