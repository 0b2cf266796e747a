"""The metrics log: records as JSON lines, appended during a run; an incomplete last line is ignored when reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from rankwise.errors import RankwiseError, RunError
from rankwise.runs.records import LossRecord, RankRecord, SampleRecord, ScoreRecord, StepRecord
from rankwise.system.files import told_when_full

_Record = TypeVar("_Record", StepRecord, LossRecord, ScoreRecord, SampleRecord, RankRecord)


class MetricsLog:
    """`follow`, where it is set, receives each record once it has been written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: TextIO | None = None
        self.follow: Callable[[dict[str, Any]], None] | None = None

    @property
    def _file(self) -> TextIO:
        """Opened by the first record."""
        if self._opened is None:
            self._opened = self._path.open("a", encoding="utf-8")
        return self._opened

    def append(self, row: dict[str, Any]) -> None:
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


def line_of(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def first_lines(path: Path, count: int) -> bytes:
    """The first lines of a log, each with its end."""
    return b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:count])


def read_metrics_log(path: Path) -> list[dict[str, Any]]:
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


def read_history(path: Path) -> History:
    """Read all records of a run so far. Unknown kinds, which come from later versions, are ignored."""
    rows = _rows(path)
    return History(
        _records(path, rows, "step", StepRecord), _records(path, rows, "validation", LossRecord),
        _records(path, rows, "score", ScoreRecord), _records(path, rows, "sample", SampleRecord),
        _records(path, rows, "ranks", RankRecord),
    )  # fmt: skip


def read_ranks(path: Path) -> list[RankRecord]:
    """Read the rank allocations of a run; empty if ranks were fixed."""
    return _records(path, _rows(path), "ranks", RankRecord)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [row for row in read_metrics_log(path) if isinstance(row, dict)]
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a complete run.") from None


def _records(path: Path, rows: list[dict[str, Any]], kind: str, record: type[_Record]) -> list[_Record]:
    kept = [{key: value for key, value in row.items() if key != "kind"} for row in rows if row.get("kind") == kind]
    try:
        adapter: TypeAdapter[list[_Record]] = TypeAdapter(list[record])  # pyright: ignore[reportInvalidTypeForm]
        return adapter.validate_json(json.dumps(kept), strict=True)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        what = (
            f"row {where[0]} of kind {kind} has an invalid {where[-1]}"
            if where
            else f"a row of kind {kind} is not text"
        )
        raise RunError(f"{path} is damaged: {what}.") from None
