"""The claims that LoRA is famous for, measured here: every one ends as "holds", "does not hold" or "cannot tell".

Each method gets its own best learning rate: rates are tried with the first seed, and beyond the end of the list for as
long as the end is best, by rows that are not reported; the best gets the other seeds. Quick mode takes the rows that
`demo` writes; the full mode (lab/claims.py) takes public sets and more of everything. What is finished is kept and not
run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from rankwise.data.orders import TEST, TRAIN, order_examples
from rankwise.errors import EvaluationError
from rankwise.evaluation.claims import Curve, Table, as_good, factor, forgets_less, improved, not_measured
from rankwise.evaluation.text import text_for
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.run.claims import CellResult, Claim, Claims
from rankwise.run.records import Announce, Said, silent
from rankwise.run.writing import sha256_of, write_json
from rankwise.spec.models import ModelSpec
from rankwise.verbs.claim_cells import BASE_OF, Cell, Cells, ClaimTask
from rankwise.verbs.demo import write_rows

ADAPTERS, FULL = ("lora", "adalora"), "full"
METHODS = (*ADAPTERS, FULL)
QUICK_ROWS, QUICK_MEASURED = 112, 80


@dataclass(frozen=True)
class Plan:
    """`rows` of each task to train on; `small` are (task, rows) at which adapters meet full fine-tuning again."""

    rates: Mapping[str, Sequence[float]]
    seeds: Sequence[int]
    rows: Mapping[str, int]
    small: Sequence[tuple[str, int]] = ()
    blocks: int = 8
    """Of 512 tokens of text that nobody is trained on."""
    most_rates: int = 5


QUICK = Plan(
    {"lora": (2e-3, 4e-3), "adalora": (2e-3, 4e-3), "full": (1e-4, 3e-4)}, (0, 1, 2), {"orders": QUICK_ROWS},
    blocks=4, most_rates=2,
)  # fmt: skip
LEFT_OUT = {
    "(6) lora is as good as full with little data": "quick mode has one number of rows; lab/claims.py has several",
    "(7) what is learned holds for instructions of another source": "quick mode has one source; lab/claims.py has two",
}


@dataclass
class _Work:
    plan: Plan
    cells: Cells
    announce: Announce
    rates: dict[str, float] = field(default_factory=dict)
    """The best ones, by task, rows and method."""

    def best(self, task: str, rows: int, method: str) -> float:
        rates = sorted(self.plan.rates[method])

        def loss(rate: float) -> float:
            return self._told(Cell(task, method, rows, rate, self.plan.seeds[0])).choosing

        while True:
            best = min(rates, key=loss)
            if len(rates) >= self.plan.most_rates or rates[0] < best < rates[-1]:
                self.rates[f"{task} {rows} {method}"] = best
                return best
            rates = sorted([*rates, best * 2 if best == rates[-1] else best / 2])

    def runs(self, task: str, rows: int, method: str) -> list[CellResult]:
        """At the best rate, one for each seed."""
        rate = self.best(task, rows, method)
        return [self._told(Cell(task, method, rows, rate, seed)) for seed in self.plan.seeds]

    def base(self, task: str, method: str) -> CellResult:
        return self.cells.result(Cell(task, BASE_OF.get(method, "base"), 0, 0.0, 0))

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
    loaded = load(ModelSpec(name=model), announce)
    text = text_for(loaded, blocks=plan.blocks)
    work = _Work(plan, Cells(tasks, loaded, folder / "cells.jsonl", text, announce, until), announce)
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    peaks = _Peaks(folder / "peaks.json", tasks[0], loaded, announce)
    del loaded
    found: list[Claim] = []
    for name, make in ((SIZE, lambda: _of_size(peaks.found(until), total)), *_of_tasks(work, tasks), *_of_small(work)):
        try:
            found += make()
        except TimeoutError:
            found.append(not_measured(name, "not measured yet; the same command goes on"))
    found += [not_measured(name, why) for name, why in LEFT_OUT.items() if mode == "quick"]
    facts = {"rates": work.rates, "text": text.about}
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
    def learned(method: str) -> Claim:
        ours = _table([run.outside for run in work.runs(task, rows, method)])
        name = f"(7) {method} learns for instructions of another source, {task}"
        return improved(name, ours, _table([work.base(task, method).outside]))

    return [learned(method) for method in METHODS]


def _of_small(work: _Work) -> list[Group]:
    return [(f"(6) {rows} rows, {task}", partial(_small, work, task, rows)) for task, rows in work.plan.small]


def _small(work: _Work, task: str, rows: int) -> list[Claim]:
    ours, theirs = (_table([run.rows for run in work.runs(task, rows, method)]) for method in ("lora", FULL))
    return [as_good(f"(6) lora is as good as full with {rows} rows, {task}", ours, theirs)]


def _table(runs: Sequence[Sequence[Sequence[float]]]) -> Table:
    return np.array(runs, dtype=np.float64)


@dataclass(frozen=True)
class _Peaks:
    """What three steps of training take, each method in a process of its own, as `rankwise train` prints it."""

    file: Path
    task: ClaimTask
    model: LoadedModel
    announce: Announce

    def found(self, until: float | None) -> dict[str, dict[str, float]]:
        conditions = [self.model.facts.fingerprint, sha256_of(self.task.trained)]
        if self.file.exists():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept.get("conditions") == conditions:
                return kept["found"]
        if until is not None and time.monotonic() > until:
            raise TimeoutError
        found = {method: self._measured(method) for method in ("lora", FULL)}
        write_json(self.file, {"conditions": conditions, "found": found})
        return found

    def _measured(self, method: str) -> dict[str, float]:
        self.announce(Said(f"measuring the memory of three steps, {method}"))
        run, name = f"peak-{method}", self.model.spec.name
        model = str(Path(name).absolute()) if Path(name).exists() else name
        words = [
            sys.executable, "-m", "rankwise", "train", "--model", model, "--data", str(self.task.trained.absolute()),
            "--run", run, "--steps", "3", "--method", method, "--json", "--quiet",
        ]  # fmt: skip
        folder = self.file.parent
        shutil.rmtree(folder / "runs" / run, ignore_errors=True)
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EvaluationError(f"{' '.join(words[2:])} failed: {' '.join(done.stderr.strip().splitlines()[-1:])}.")
        told = json.loads(done.stdout)
        return {key: told[key] for key in ("trainable_parameters", "peak_rss_bytes", "adapter_bytes")}
