"""Finished cells of the claims: stored with what they depend on, not run again, and never taken for others.

A cell is one run (claims_runs.py). A file has a line for each; lines of several files may be put together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from claims_records import CellResult
from claims_runs import BASE, MARKS, Cell, ClaimTask, Held, base_cell, experiment_of, run_cell

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.errors import RunError
from rankwise.evaluation.text import Text
from rankwise.runs.metrics_log import MetricsLog, first_lines, read_metrics_log
from rankwise.runs.records import Callback, silent
from rankwise.system.files import write_atomic

FORMAT = 4


class OutOfTime(Exception):
    """No time is left for another cell."""


class Cells:
    """All that are finished lie in one file, a line each, with what they depend on: others are not taken for them."""

    def __init__(
        self, tasks: Sequence[ClaimTask], model: LoadedModel, file: Path, text: Text, callback: Callback,
        until: float | None,
    ) -> None:  # fmt: skip
        self.tasks = {task.name: task for task in tasks}
        self._model, self._file, self._text, self._announce, self._until = (
            model.config.name,
            file,
            text,
            callback,
            until,
        )
        self._held: Held | None = None
        self._fixed = [FORMAT, MARKS, model.facts.fingerprint, model.facts.device, text.sha256]
        self._files = {task.name: task.files for task in tasks}
        rows = read_metrics_log(file) if file.exists() else []
        if file.exists() and not file.read_bytes().endswith(b"\n"):
            write_atomic(file, first_lines(file, len(rows)))
        self.done = dict(known for number, row in enumerate(rows, start=1) for known in self._read(number, row))

    def found(self) -> list[tuple[Cell, CellResult]]:
        return [(Cell(**json.loads(key)), result) for key, result in self.done.items()]

    def _read(self, number: int, row: Any) -> list[tuple[str, CellResult]]:
        """None where it is of other conditions."""
        try:
            cell, conditions = Cell(**row["cell"]), row["conditions"]
            if cell.task not in self.tasks or conditions != self._conditions(cell):
                return []
            return [(cell.key, CellResult(**row["result"]))]
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{self._file}:{number}: is no finished cell of the claims. Remove this line.") from None

    def result(self, cell: Cell) -> CellResult:
        """OutOfTime where no time is left for another one."""
        if cell.key not in self.done:
            if self._until is not None and time.monotonic() > self._until:
                raise OutOfTime
            result = self._run(cell)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            row = {"conditions": self._conditions(cell), "cell": asdict(cell), "result": result.model_dump()}
            with MetricsLog(self._file) as metrics_log:
                metrics_log.append(row)
            self.done[cell.key] = result
        return self.done[cell.key]

    def _conditions(self, cell: Cell) -> str:
        """Hash everything that a result depends on. Files count by content and settings by value, so that a stored cell
        stays valid when a file moves or a setting gets another name."""
        experiment = experiment_of(cell, self.tasks[cell.task], self._model)
        adapter = sorted(map(json.dumps, experiment.adapter.model_dump(mode="json").values()))
        training = experiment.training
        schedule = [training.schedule, training.warmup, training.weight_decay, training.clip]
        steps = [training.epochs, training.batch_size, training.learning_rate, training.seed]
        task = [self._files[cell.task], cell.rows, self.tasks[cell.task].longest]
        values = [*self._fixed, *task, adapter, *schedule, *steps, experiment.model.dtype]
        return sha256(json.dumps(values).encode()).hexdigest()

    def _run(self, cell: Cell) -> CellResult:
        task = self.tasks[cell.task]
        experiment = experiment_of(cell, task, self._model)
        if self._held is None:
            self._held = Held(load(experiment.base, silent))
        if cell.method == BASE:
            return base_cell(self._held.model, task)
        return run_cell(experiment, task, self._held, self._text, self._announce)
