"""The claims that LoRA is famous for, measured here: every one ends as "holds", "does not hold" or "cannot tell".

Each method gets its own best learning rate, by rows that are not reported: rates are tried with the first seed, and
beyond the end of the list for as long as the end is best and the plan has rates left; the best gets the other seeds.
Quick mode takes the rows that `demo` writes; the full mode (lab/claims.py) takes public sets and more of everything.
What is finished is kept and not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from claims_answers import Table, as_good, as_well_as, factor, forgets_less, improved, not_measured
from claims_cells import Cells, OutOfTime
from claims_peaks import FULL, Peaks
from claims_records import CellResult, Claim, Claims
from claims_runs import BASE, Cell, ClaimTask

from rankwise.base.loading import load
from rankwise.commands.demo import demo_rows, write_rows
from rankwise.config.models import ModelConfig
from rankwise.evaluation.text import text_for
from rankwise.runs.manifest import versions
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.system.files import write_json
from rankwise.system.processor import processor_name

ADAPTERS = ("lora", "adalora")
METHODS = (*ADAPTERS, FULL)
QUICK_ROWS, QUICK_MEASURED = 40, 32


@dataclass(frozen=True)
class Plan:
    """`rows` of each task to train on; `small` are (task, rows) at which adapters meet full fine-tuning again."""

    rates: Mapping[str, Sequence[float]]
    seeds: Sequence[int]
    rows: Mapping[str, int]
    small: Sequence[tuple[str, int]] = ()
    blocks: int = 16
    """Of BLOCK_LENGTH tokens of text that nobody is trained on."""
    most_rates: int = 5


BLOCK_LENGTH = 128
QUICK = Plan(
    {"lora": (1e-3, 2e-3, 4e-3), "adalora": (4e-3, 8e-3, 16e-3), "full": (5e-5, 1e-4, 2e-4)}, (0, 1, 2),
    {"orders": QUICK_ROWS}, blocks=6, most_rates=3,
)  # fmt: skip
LEFT_OUT = {
    "(6) lora is as good as full with little data": "quick mode has one number of rows; lab/claims.py has several",
    "(7) what is learned holds for instructions of another source": "quick mode has one source; lab/claims.py has two",
}


@dataclass
class _Work:
    plan: Plan
    cells: Cells
    callback: Callback
    rates: dict[str, str] = field(default_factory=dict)
    """The best ones, by task, rows and method, and among which."""

    def best(self, task: str, rows: int, method: str) -> float:
        rates = sorted(self.plan.rates[method])

        def loss(rate: float) -> float:
            return self._told(Cell(task, method, rows, rate, self.plan.seeds[0])).choosing_loss

        while True:
            best = min(rates, key=loss)
            inside = rates[0] < best < rates[-1]
            if len(rates) >= self.plan.most_rates or inside:
                end = "" if inside else ", at the end of which it is"
                self.rates[f"{task} {rows} {method}"] = f"{best:g} of {', '.join(f'{rate:g}' for rate in rates)}{end}"
                return best
            rates = sorted([*rates, best * 2 if best == rates[-1] else best / 2])

    def runs(self, task: str, rows: int, method: str) -> list[CellResult]:
        """At the best rate, one for each seed. Diverged where one of them came to nothing."""
        rate = self.best(task, rows, method)
        found = [self._told(Cell(task, method, rows, rate, seed)) for seed in self.plan.seeds]
        for one in found:
            if one.failed is not None:
                raise _Diverged(f"{method} at {rate:g}: {one.failed}")
        return found

    def as_well(self, task: str, rows: int, method: str) -> list[CellResult]:
        """At the other rates that were tried, where no loss tells them from the best."""
        best = self.best(task, rows, method)
        asked = (task, rows, method, self.plan.seeds[0])
        tried = {cell.rate: result for cell, result in self.cells.found()
                 if (cell.task, cell.rows, cell.method, cell.seed) == asked}  # fmt: skip
        return [result for rate, result in sorted(tried.items()) if rate != best and as_well_as(tried[best], result)]

    def base(self, task: str) -> CellResult:
        return self.cells.result(Cell(task, BASE, 0, 0.0, 0))

    def _told(self, cell: Cell) -> CellResult:
        known = cell.key in self.cells.done
        result = self.cells.result(cell)
        if not known:
            last = result.points[-1]
            became = result.failed or f"loss {last.loss:.4f}, KL {last.kl:.4f}, {result.seconds:.0f} s"
            about = f"{cell.task}, {cell.rows} rows, {cell.method} at {cell.rate:.2g}, seed {cell.seed}"
            self.callback(StatusMessage(f"{about}: {became}"))
        return result


class _Diverged(Exception):
    """A run at the best rate ended in numbers that are none."""


def claims(
    folder: Path, model: str = "smollm2-135m", *, tasks: Sequence[ClaimTask] | None = None, plan: Plan = QUICK,
    mode: str = "quick", minutes: float | None = None, callback: Callback = silent,
) -> Claims:  # fmt: skip
    """Measure what is not measured yet, and judge. With `minutes`, what is still missing then is told as missing."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    until = None if minutes is None else began + 60 * minutes
    tasks = [_orders(folder)] if tasks is None else tasks
    loaded = load(ModelConfig(name=model), callback)
    text = text_for(loaded, blocks=plan.blocks, length=BLOCK_LENGTH)
    work = _Work(plan, Cells(tasks, loaded, folder / "cells.jsonl", text, callback, until), callback)
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    peaks = Peaks(folder / "peaks.json", tasks[0], loaded.config.name, loaded.facts, callback)
    facts = {"text": text.about, "processor": processor_name(), "device": loaded.facts.device, "dtype": "float32",
             "tasks": {task.name: f"{plan.rows[task.name]} rows, once, {task.batch} a step" for task in tasks},
             "versions": versions()}  # fmt: skip
    del loaded
    found: list[Claim] = []
    for name, make in ((SIZE, lambda: _of_size(peaks.found(until), total)), *_of_tasks(work, tasks), *_of_small(work)):
        try:
            found += make()
        except OutOfTime:
            found.append(not_measured(name, "not measured yet; the same command goes on"))
        except _Diverged as error:
            found.append(not_measured(name, str(error)))
    found += [not_measured(name, why) for name, why in LEFT_OUT.items() if mode == "quick"]
    facts = {"rates": work.rates, **facts}
    told = Claims(model=model, mode=mode, claims=found, facts=facts, seconds=round(time.monotonic() - began, 1))
    write_json(folder / "claims.json", told.model_dump(mode="json"))
    return told


def _orders(folder: Path) -> ClaimTask:
    """Customer messages and one line of JSON for each, as in `demo`."""
    trained, measured = folder / "orders-trained.jsonl", folder / "orders-measured.jsonl"
    training, testing = demo_rows()
    write_rows(trained, training[:QUICK_ROWS])
    write_rows(measured, testing[:QUICK_MEASURED])
    return ClaimTask("orders", trained, measured)


def _of_size(peaks: dict[str, dict[str, float]], total: int) -> list[Claim]:
    """Three steps of each, as `rankwise train` prints them."""
    lora, full = peaks["lora"], peaks[FULL]
    memory, file = (
        [f"{one[key] / 1e6:,.1f}" for one in (lora, full)] for key in ("peak_rss_bytes", "adapter_bytes")
    )  # fmt: skip
    return [
        factor("(1) trains a thousandth of the parameters", total / lora["trainable_parameters"], 1000),
        factor(
            "(2) training's process takes a third of the memory", full["peak_rss_bytes"] / lora["peak_rss_bytes"], 3,
            f"{memory[0]} MB as rankwise trains here, against {memory[1]} in float32",
        ),
        factor(
            "(3) is stored in megabytes", full["adapter_bytes"] / lora["adapter_bytes"], 10,
            f"{file[0]} MB, against {file[1]} for the model in float32",
        ),
    ]  # fmt: skip


Group = tuple[str, Callable[[], list[Claim]]]
SIZE = "(1) to (3) what it takes"


def _of_tasks(work: _Work, tasks: Sequence[ClaimTask]) -> list[Group]:
    """In the order in which a reader wants them if time runs out."""
    made: list[Group] = []
    for task in tasks:
        rows = work.plan.rows[task.name]
        made.append((f"(4) and (5) quality and forgetting, {task.name}", partial(_quality, work, task.name, rows)))
        if task.outside is not None:
            made.append((f"(7) another source, {task.name}", partial(_outside, work, task.name, rows)))
    return made


def _quality(work: _Work, task: str, rows: int) -> list[Claim]:
    runs = {method: work.runs(task, rows, method) for method in METHODS}
    also = {method: work.as_well(task, rows, method) for method in METHODS}
    tables = {method: _table([run.rows for run in each]) for method, each in runs.items()}
    base = _table([runs[FULL][0].points[0].rows])
    return [
        *(as_good(f"(4) {name} is as good as full, {task}", tables[name], tables[FULL], base) for name in ADAPTERS),
        as_good(f"(4) adalora is as good as lora, {task}", tables["adalora"], tables["lora"], base),
        *(forgets_less(f"(5) {name} forgets less than full, {task}", runs[name], runs[FULL], (also[name], also[FULL]))
          for name in ADAPTERS),
    ]  # fmt: skip


def _outside(work: _Work, task: str, rows: int) -> list[Claim]:
    def learned(method: str) -> Claim:
        ours = _table([run.outside for run in work.runs(task, rows, method)])
        name = f"(7) {method} learns for instructions of another source, {task}"
        return improved(name, ours, _table([work.base(task).outside]))

    return [learned(method) for method in METHODS]


def _of_small(work: _Work) -> list[Group]:
    return [(f"(6) {rows} rows, {task}", partial(_small, work, task, rows)) for task, rows in work.plan.small]


def _small(work: _Work, task: str, rows: int) -> list[Claim]:
    runs = {method: work.runs(task, rows, method) for method in ("lora", FULL)}
    ours, theirs = (_table([run.rows for run in each]) for each in runs.values())
    base = _table([runs[FULL][0].points[0].rows])
    return [as_good(f"(6) lora is as good as full with {rows} rows, {task}", ours, theirs, base)]


def _table(runs: Sequence[Sequence[Sequence[float]]]) -> Table:
    return np.array(runs, dtype=np.float64)
