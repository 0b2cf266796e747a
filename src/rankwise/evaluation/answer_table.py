"""Every answer of an evaluation as a table: the columns of its row as the file has them, the reference and the answer.
And how many rows the run was trained on, whatever file they lie in.

Items are found again by the place of their row, once somebody asks for them. Where rows cannot be found, as those of a
task with its own questions or those that a run held out, the table has the prompts instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.evaluation.task import Task
from rankwise.rows.files.hub import HUB
from rankwise.rows.files.output import Origin, file_of
from rankwise.rows.sources import OpenedSource, open_source, raw_records
from rankwise.runs.evaluations import Evaluation
from rankwise.runs.records import Callback
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import write_atomic

MOST = 100_000
"""Rows of a training file that are looked at."""


@dataclass(frozen=True)
class AnswerTable:
    """`task` was scored, and its rows may lie in the file `data`."""

    task: Task
    data: str | None

    @cached_property
    def _read(self) -> tuple[OpenedSource | None, dict[str, dict[str, Any]]]:
        """The file with its rows by their places; nothing where it was read with other settings."""
        if self.data is None:
            return None, {}
        try:
            reading = _opened(self.data)
            records = (record for part in reading.parts for record in raw_records(part))
            return reading, {where: row for where, row in records if isinstance(row, dict)}
        except DataError:
            return None, {}

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """What stands before the answer in each row."""
        items, (_, rows) = self.task.items(), self._read
        if any(item["where"] not in rows for item in items):
            return items
        return [rows[item["where"]] | {"reference": item["reference"]} for item in items]

    def write(self, path: Path, evaluation: Evaluation, callback: Callback) -> None:
        """A table from a single table has its dialect (rows/files/output.py)."""
        rows, (reading, own) = evaluation.answers, self._read
        places = [item["where"] for item in self.task.items()]
        origin = None
        if reading is not None and places and all(place in own for place in places):
            columns = {name for place in places for name in own[place]}
            origin = Origin.of(reading.parts, reading.source, places, rows, columns)
        write_atomic(path, file_of(rows, path, origin, callback))


def learned_rows(run: RunSnapshot, data: str) -> tuple[int, int]:
    """How many rows of a file have all the texts of one that the run was trained on, and how many it has. Images are
    not looked at, and nothing is asked of the hub."""
    config = run.data_here
    try:
        here = [source for source in config.all_sources if not source.path.startswith(HUB)]
        learned = {texts for source in here for texts in _texts_of(open_source(config, source))}
        rows = [] if data.startswith(HUB) else _texts_of(_opened(data))
    except DataError:
        return 0, 0
    return sum(bool(texts) and texts in learned for texts in rows), len(rows)


def _opened(data: str) -> OpenedSource:
    config = DataConfig(path=data)
    return open_source(config, config.all_sources[0])


def _texts_of(reading: OpenedSource) -> list[frozenset[str]]:
    """The texts of several words in each row, without what programs that save tables change around them."""
    parts = (part for part in reading.parts if not part.of_images)
    records = (record for part in parts for record in islice(raw_records(part), MOST))
    return [
        frozenset(" ".join(value.split()) for value in row.values() if isinstance(value, str) and " " in value)
        for _, row in records if isinstance(row, dict)
    ]  # fmt: skip
