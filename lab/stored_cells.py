"""Cells of a lab: each finished one is a line of a file, and what is there is not run again."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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


def fresh(run: str) -> str:
    """The name of a run of the working folder, without what a cell that was stopped has left of it."""
    shutil.rmtree(Path("runs") / run, ignore_errors=True)
    return run


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


def command(
    doc: str | None, file: str, options: Mapping[str, str], cells: Callable[..., Iterable[Cell]],
    run: Callable[[Path, Any], Row], line: Callable[[Row], str], table: Callable[[Path, dict[Any, Row]], Iterator[str]],
) -> None:  # fmt: skip
    """`python LAB.py FOLDER [--OPTION a,b] [--table]`: run the cells of these options that are not in FOLDER/`file`,
    each in a process of its own, or print the table of those that are. `cells` gets what is done, to which each
    finished cell is added, and the options' values as lists."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, usual in options.items():
        parser.add_argument(f"--{name}", default=usual)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    done = done_in(folder / file)
    if given.table:
        print("\n".join(table(folder, done)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    values = {name: getattr(given, name).split(",") for name in options}
    run_missing(folder / file, done, cells(done, **values), partial(alone, run, folder), line)
