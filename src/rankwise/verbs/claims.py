"""The claims that LoRA is famous for, measured here: every one ends as "holds", "does not hold" or "cannot tell".

Each method gets its own best learning rate: rates are tried with the first seed, and beyond the end of the list for as
long as the end is best; the best gets the other seeds. Quick mode takes the rows that `demo` writes, or the user's own;
the full mode (lab/claims.py) takes public sets and more of everything. What is finished is kept and not run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.data.orders import TEST, TRAIN, order_examples
from rankwise.errors import EvaluationError
from rankwise.evaluation.claims import Curve, Table, as_good, factor, forgets_less, improved
from rankwise.evaluation.text import text_for
from rankwise.models.loading import load
from rankwise.run.claims import CellResult, Claim, Claims
from rankwise.run.records import Announce, Said, silent
from rankwise.run.writing import write_json
from rankwise.spec.models import ModelSpec
from rankwise.verbs.claim_cells import Cell, Cells, ClaimTask
from rankwise.verbs.demo import write_rows

ADAPTERS, FULL = ("lora", "adalora"), "full"
METHODS = (*ADAPTERS, FULL)
QUICK_ROWS, QUICK_MEASURED = 160, 60
MOST_RATES = 5


@dataclass(frozen=True)
class Plan:
    """`rows` of each task to train on; `small` are (task, rows) at which adapters meet full fine-tuning again."""

    rates: Mapping[str, Sequence[float]]
    seeds: Sequence[int]
    rows: Mapping[str, int]
    small: Sequence[tuple[str, int]] = ()
    blocks: int = 8
    """Of 512 tokens of text that nobody is trained on."""


QUICK = Plan({"lora": (2e-3,), "adalora": (2e-3,), "full": (1e-4, 3e-4)}, (0, 1), {"orders": QUICK_ROWS})


@dataclass
class _Work:
    plan: Plan
    cells: Cells
    announce: Announce
    rates: dict[str, float] = field(default_factory=dict)
    """The best ones, by task, rows and method."""

    def best(self, task: str, rows: int, method: str) -> float:
        rates = sorted(self.plan.rates[method])
        wide = len(rates) > 1

        def loss(rate: float) -> float:
            return self._told(Cell(task, method, rows, rate, self.plan.seeds[0])).points[-1].loss

        while True:
            best = min(rates, key=loss)
            if not wide or len(rates) >= MOST_RATES or rates[0] < best < rates[-1]:
                self.rates[f"{task} {rows} {method}"] = best
                return best
            rates = sorted([*rates, best * 2 if best == rates[-1] else best / 2])

    def runs(self, task: str, rows: int, method: str) -> list[CellResult]:
        """At the best rate, one for each seed."""
        rate = self.best(task, rows, method)
        return [self._told(Cell(task, method, rows, rate, seed)) for seed in self.plan.seeds]

    def base(self, task: str) -> CellResult:
        return self.cells.result(Cell(task, "base", 0, 0.0, 0))

    def _told(self, cell: Cell) -> CellResult:
        known = cell.key in self.cells.done
        result = self.cells.result(cell)
        if not known:
            last = result.points[-1]
            self.announce(
                Said(
                    f"{cell.task}, {cell.rows} rows, {cell.method} at {cell.rate:.2g}, seed {cell.seed}: loss "
                    f"{last.loss:.4f}, KL {last.kl:.4f}, {result.seconds:.0f} s"
                )
            )
        return result


def claims(
    folder: Path, model: str = "smollm2-135m", *, tasks: Sequence[ClaimTask] | None = None, plan: Plan = QUICK,
    mode: str = "quick", minutes: float | None = None, announce: Announce = silent,
) -> Claims:  # fmt: skip
    """Measure what is not measured yet, and judge. With `minutes`, what is still missing then is told as missing."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    until = None if minutes is None else began + 60 * minutes
    tasks = [_orders(folder)] if tasks is None else tasks
    spec = ModelSpec(name=model)
    loaded = load(spec, announce)
    text = text_for(loaded, blocks=plan.blocks)
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    del loaded
    peaks = _peaks(folder, tasks[0], model, announce)
    work = _Work(plan, Cells(tasks, model, folder / "cells.jsonl", text, silent, until), announce)
    found = _of_size(peaks, total)
    missing = []
    for make in (*_of_tasks(work, tasks), *_of_small_data(work)):
        try:
            found += make()
        except TimeoutError:
            missing.append(1)
    if missing:
        announce(Said(f"{len(missing)} groups of claims are not measured yet; the same command goes on"))
    facts = {"peaks": peaks, "rates": work.rates, "text": text.about, "missing": len(missing)}
    told = Claims(model=model, mode=mode, claims=found, facts=facts, seconds=round(time.monotonic() - began, 1))
    write_json(folder / "claims.json", told.model_dump(mode="json"))
    return told


def _orders(folder: Path) -> ClaimTask:
    """Customer messages and one line of JSON for each, as in `demo`."""
    trained, measured = folder / "orders-trained.jsonl", folder / "orders-measured.jsonl"
    write_rows(trained, order_examples(QUICK_ROWS, TRAIN, 0))
    write_rows(measured, order_examples(QUICK_MEASURED, TEST, 1))
    return ClaimTask("orders", trained, measured)


def _of_size(peaks: dict[str, dict[str, float]], total: int) -> list[Claim]:
    lora, full = peaks["lora"], peaks[FULL]
    return [
        factor("(1) trains a thousandth of the parameters", total / lora["trainable_parameters"], 1000),
        factor("(2) takes a third of the memory", full["peak_rss_bytes"] / lora["peak_rss_bytes"], 3),
        factor("(3) is stored in megabytes: model over adapter", full["adapter_bytes"] / lora["adapter_bytes"], 10),
    ]


def _of_tasks(work: _Work, tasks: Sequence[ClaimTask]) -> list[Any]:
    """In the order in which a reader wants them if time runs out."""
    made = []
    for task in tasks:
        rows = work.plan.rows[task.name]
        made += [lambda task=task, rows=rows: _quality(work, task.name, rows)]
        if task.outside is not None:
            made += [lambda task=task, rows=rows: _outside(work, task.name, rows)]
    return made


def _quality(work: _Work, task: str, rows: int) -> list[Claim]:
    runs = {method: work.runs(task, rows, method) for method in METHODS}
    tables = {method: _table([run.rows for run in each]) for method, each in runs.items()}
    curves: dict[str, list[Curve]] = {
        method: [[(point.loss, point.kl) for point in run.points] for run in each] for method, each in runs.items()
    }
    return [
        *(as_good(f"(4) {name} is as good as full, {task}", tables[name], tables[FULL]) for name in ADAPTERS),
        as_good(f"(4) adalora is as good as lora, {task}", tables["adalora"], tables["lora"]),
        *(forgets_less(f"(5) {name} forgets less than full, {task}", curves[name], curves[FULL]) for name in ADAPTERS),
    ]


def _outside(work: _Work, task: str, rows: int) -> list[Claim]:
    base = _table([work.base(task).outside])
    return [
        improved(f"(7) {method} learns for instructions of another source, {task}",
                 _table([run.outside for run in work.runs(task, rows, method)]), base)
        for method in METHODS
    ]  # fmt: skip


def _of_small_data(work: _Work) -> list[Any]:
    return [lambda task=task, rows=rows: _small(work, task, rows) for task, rows in work.plan.small]


def _small(work: _Work, task: str, rows: int) -> list[Claim]:
    ours, theirs = (_table([run.rows for run in work.runs(task, rows, method)]) for method in ("lora", FULL))
    return [as_good(f"(6) lora is as good as full with {rows} rows, {task}", ours, theirs)]


def _table(runs: Sequence[Sequence[Sequence[float]]]) -> Table:
    return np.array(runs, dtype=np.float64)


def _peaks(folder: Path, task: ClaimTask, model: str, announce: Announce) -> dict[str, dict[str, float]]:
    """What three steps of training take, each method in a process of its own, as `rankwise train` prints it."""
    file = folder / "peaks.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    found = {}
    for method in ("lora", FULL):
        announce(Said(f"measuring the memory of three steps, {method}"))
        run = f"peak-{method}"
        words = [
            sys.executable, "-m", "rankwise", "train", "--model", model, "--data",
            str(task.trained.absolute()), "--run", run, "--steps", "3", "--method", method, "--json", "--quiet",
        ]  # fmt: skip
        shutil.rmtree(folder / "runs" / run, ignore_errors=True)
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EvaluationError(f"{' '.join(words[2:])} failed: {done.stderr.strip().splitlines()[-1:]}.")
        told = json.loads(done.stdout)
        found[method] = {key: told[key] for key in ("trainable_parameters", "peak_rss_bytes", "adapter_bytes")}
    write_json(file, found)
    return found
