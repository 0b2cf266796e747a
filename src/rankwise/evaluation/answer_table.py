"""Every answer of an evaluation as a table: the columns of its row as the file has them, the reference and the answer.
And how many of the rows the run was trained on, whatever file they lie in.

Items are found again by the place of their row. Where rows cannot be found, as those of a task with its own questions
or those that a run held out, the table has the prompts instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.files.hub import HUB
from rankwise.rows.files.output import Origin, file_of
from rankwise.rows.sources import OpenedSource, open_source, raw_records
from rankwise.runs.evaluations import Evaluation
from rankwise.runs.records import Callback
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import write_atomic

Items = list[dict[str, Any]]
MOST = 100_000
"""Rows of a training file that are looked at."""


@dataclass(frozen=True)
class AnswerTable:
    items: Items
    """What stands before the answers in each row."""
    places: Sequence[str]
    reading: OpenedSource | None
    """The file whose columns the items have."""

    def write(self, path: Path, evaluation: Evaluation, callback: Callback) -> None:
        """A table from a single table has its dialect (rows/files/output.py)."""
        rows, origin = evaluation.answers, None
        if self.reading is not None and len(self.reading.parts) == 1 and Path(self.reading.parts[0].name).is_file():
            [part] = self.reading.parts
            before = {name for item in self.items for name in item} - {"reference"}
            added = list(dict.fromkeys(name for row in rows for name in row if name not in before))
            sheet = None if part.layout is None else part.layout.sheet
            origin = Origin(Path(part.name), self.reading.source, sheet, self.places, added)
        write_atomic(path, file_of(rows, path, origin, callback))


def learned_rows(run: RunSnapshot, items: Items) -> int:
    """How many items have all the texts of a row in the files that the run was trained on, where those still lie. Images
    are not looked at, and nothing is asked of the hub."""
    config = run.data_here
    try:
        here = [source for source in config.all_sources if not source.path.startswith(HUB)]
        parts = [part for source in here for part in open_source(config, source).parts if not part.of_images]
        learned = {_texts(row) for part in parts for _, row in islice(raw_records(part), MOST) if isinstance(row, dict)}
    except DataError:
        return 0
    return sum(bool(texts := _texts({**item, "reference": None})) and texts in learned for item in items)


def _texts(row: dict[str, Any]) -> frozenset[str]:
    """The texts of several words in a row, without what programs that save tables change around them."""
    return frozenset(" ".join(value.split()) for value in row.values() if isinstance(value, str) and " " in value)


def answer_table(items: Items, data: str | None) -> AnswerTable:
    """`items` have the place, prompt and reference of each row, of which some may lie in the file `data`."""
    places = [item["where"] for item in items]
    try:
        reading = None if data is None else open_source(config := DataConfig(path=data), config.all_sources[0])
        parts = () if reading is None else reading.parts
        rows = {where: row for part in parts for where, row in raw_records(part) if isinstance(row, dict)}
    except DataError:  # it was read with other settings
        reading, rows = None, {}
    if not items or any(place not in rows for place in places):
        return AnswerTable(items, places, None)
    return AnswerTable([rows[item["where"]] | {"reference": item["reference"]} for item in items], places, reading)
