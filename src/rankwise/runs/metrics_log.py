"""The metrics log: records as JSON lines, appended during a run; an incomplete last line is ignored when reading.

`LogTail` follows a log that another process writes: what is new since a position, in complete lines only. A position
is `BYTES-CHECKSUM`: how many bytes were read, and a checksum of the last of them. A log that was cut or begun anew does
not have these bytes before the position, so it is read again from its beginning.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TextIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from rankwise.config.base import JsonObject
from rankwise.errors import RankwiseError, RunError
from rankwise.runs.records import (
    BudgetRecord,
    EarlierRecord,
    LossRecord,
    RankRecord,
    Record,
    SampleRecord,
    ScoreRecord,
    StepRecord,
)
from rankwise.system.files import told_when_full

_Record = TypeVar("_Record", bound=Record)


class MetricsLog:
    """`follow`, where it is set, receives each record once it has been written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: TextIO | None = None
        self.follow: Callable[[JsonObject], None] | None = None

    @property
    def _file(self) -> TextIO:
        """Opened by the first record."""
        if self._opened is None:
            self._opened = self._path.open("a", encoding="utf-8")
        return self._opened

    def append(self, row: JsonObject) -> None:
        with told_when_full(self._path):
            self._file.write(line_of(row))
            self._file.flush()
        if self.follow is not None:
            self.follow(row)

    def sync(self) -> None:
        """Flush to disk, so that a checkpoint never survives without the records before it."""
        with told_when_full(self._path):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._opened is not None:
                with told_when_full(self._path):
                    self._opened.close()
        except (OSError, RankwiseError):
            if error is None:  # the pending error already says what went wrong
                raise


def line_of(row: JsonObject) -> str:
    return json.dumps(row) + "\n"


def first_lines(path: Path, count: int) -> bytes:
    """The first lines of a log, each with its end."""
    return b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:count])


def read_metrics_log(path: Path) -> list[JsonObject]:
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise RunError(f"{path} is not a file.")
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):  # the last line may be incomplete
            if number < len(lines):
                raise RunError(
                    f"{path}:{number}: is not a JSON record: {line[:60].decode(errors='replace')!r}."
                ) from None
    return rows


@dataclass(frozen=True)
class History:
    """All records of a metrics log by kind, in order."""

    steps: list[StepRecord] = field(default_factory=list)
    losses: list[LossRecord] = field(default_factory=list)
    scores: list[ScoreRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    ranks: list[RankRecord] = field(default_factory=list)
    budget: list[BudgetRecord] = field(default_factory=list)
    earlier: list[EarlierRecord] = field(default_factory=list)


def read_history(path: Path) -> History:
    """Read all records of a run so far. Unknown kinds, which come from later versions, are ignored."""
    return history_of(path, _rows(path))


def history_of(path: Path, rows: list[JsonObject]) -> History:
    return History(
        steps=_records(path, rows, StepRecord), losses=_records(path, rows, LossRecord),
        scores=_records(path, rows, ScoreRecord), samples=_records(path, rows, SampleRecord),
        ranks=_records(path, rows, RankRecord), budget=_records(path, rows, BudgetRecord),
        earlier=_records(path, rows, EarlierRecord),
    )  # fmt: skip


def _rows(path: Path) -> list[JsonObject]:
    try:
        return [row for row in read_metrics_log(path) if isinstance(row, dict)]
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a complete run.") from None


def _records(path: Path, rows: list[JsonObject], record: type[_Record]) -> list[_Record]:
    kept = [{key: row[key] for key in row if key != "kind"} for row in rows if row.get("kind") == record.kind]
    try:
        adapter: TypeAdapter[list[_Record]] = TypeAdapter(list[record])  # pyright: ignore[reportInvalidTypeForm]
        return adapter.validate_json(json.dumps(kept), strict=True)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        row = f"row {where[0]} of kind {record.kind} has an invalid {where[-1]}" if where else ""
        what = row or f"a row of kind {record.kind} is not text"
        raise RunError(f"{path} is damaged: {what}.") from None


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

    def read(self) -> tuple[bool, list[JsonObject]]:
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


def _row(line: bytes) -> JsonObject | None:
    """None for what is not a record, which whoever reads the whole run reports."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("kind"), str) else None


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
