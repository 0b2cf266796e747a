"""Cells of a lab: each finished one is a line of a file, and what is there is not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rankwise.runs.metrics_log import MetricsLog, read_metrics_log

Cell = tuple[Any, ...]
Row = dict[str, Any]


def done_in(log: Path) -> dict[Any, Row]:
    """By cell."""
    rows = read_metrics_log(log) if log.exists() else []
    return {tuple(row["cell"]): row for row in rows if row["kind"] == "cell"}


def alone(run: Callable[[Path, Any], Row], folder: Path, cell: Cell) -> Row:
    """Run a cell in a process of its own, whose peak memory is that of nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run, folder, cell).result()


def run_missing(
    log: Path, done: dict[Any, Row], cells: Iterable[Cell], run: Callable[[Any], Row], line: Callable[[Row], str]
) -> None:
    """Run the cells that are not done, add each to `done` and to the file, and print it."""
    with MetricsLog(log) as written:
        for cell in cells:
            if cell not in done:
                done[cell] = run(cell)
                written.append(done[cell])
                print(cell, line(done[cell]), flush=True)
