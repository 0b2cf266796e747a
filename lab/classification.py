"""Four ways to train a classifier on GLUE: the head alone, LoRA, AdaLoRA, and every weight.

    python lab/classification.py FOLDER [--tasks sst-2,cola]    run what is not done yet
    python lab/classification.py FOLDER --table                 the table of what is done

MiniLM (22.7M parameters) learns from 2,000 training rows of a task in three passes (of STS-B, which has 1,000, from
800). Each method has three learning rates with seed 0; the rate with the best score on 400 other training rows (of
STS-B, 200) is run again with two more seeds. The table is of the development set, which chose nothing: the mean over
seeds, and the 95 % interval of seed 0 over its rows. Finished cells lie in FOLDER/classification.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from claims import data
from stored_cells import done_in, run_missing

from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

MODEL, TRAINED, CHOOSING, EPOCHS, BATCH = "minilm", 2000, 400, 3, 16
COLUMNS = {
    "sst-2": ("SST-2", {"text": "sentence", "label": "label"}, "accuracy"),
    "cola": ("CoLA", {"text": 3, "label": 1}, "matthews"),
    "sts-b": ("STS-B", {"text": "sentence1", "text_pair": "sentence2", "label": "score"}, "pearson"),
    "rte": ("RTE", {"text": "sentence1", "text_pair": "sentence2", "label": "label"}, "accuracy"),
}
"""By task: the folder, the columns (CoLA has no header), and the metric that chooses the rate."""
RATES = {
    "head": (1.6e-2, 6.4e-2, 0.25), "lora": (2e-4, 7e-4, 2e-3), "adalora": (3e-4, 1e-3, 3e-3),
    "full": (2e-5, 5e-5, 1e-4),
}  # fmt: skip
METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
Cell = tuple[str, str, float, int]


def rows_of(task: str, part: str) -> list[dict[str, Any]]:
    folder, columns, _ = COLUMNS[task]
    with data(f"glue/{folder}/{part}.tsv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = None if task == "cola" else lines.pop(0)
    at = {name: where if header is None else header.index(where) for name, where in columns.items()}
    label = float if task == "sts-b" else str
    found = [{name: line[where] for name, where in at.items()} for line in lines if len(line) > max(at.values())]
    return [row | {"label": label(row["label"])} for row in found]


def files(folder: Path, task: str) -> dict[str, Path]:
    """The rows as JSON lines, drawn once and the same for every cell."""
    rows = rows_of(task, "train")
    random.Random(0).shuffle(rows)
    chosen = min(CHOOSING, len(rows) // 5)
    trained = min(TRAINED, len(rows) - chosen)
    parts = {
        "trained": rows[:trained], "choosing": rows[trained : trained + chosen], "measured": rows_of(task, "dev"),
    }  # fmt: skip
    made = {name: folder / f"{task}-{name}.jsonl" for name in parts}
    for name, path in made.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in parts[name]), encoding="utf-8")
    return made


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    task, method, rate, seed = cell
    made, name = files(folder, task), f"{task}-{method}-{rate:g}-{seed}"
    experiment = Experiment(
        model={"name": MODEL, "dtype": "float32"}, run=name, objective="sequence-classification",
        adapter={"method": method}, data={"path": str(made["trained"]), "validation": str(made["choosing"])},
        training={"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": rate, "seed": seed},
        validation={"steps": 100_000},
    )  # fmt: skip
    began = time.perf_counter()
    trained = train(experiment, restart=True)
    results = trained.manifest.results
    assert results is not None
    del trained
    choosing, measured = (
        evaluate(name, data=data, dtype="float32", callback=silent) for data in (None, str(made["measured"]))
    )
    chosen_by = choosing.tuned.metrics[COLUMNS[task][2]].value
    scores = {metric: one.model_dump() for metric, one in measured.tuned.metrics.items() if metric in METRICS}
    return {
        "kind": "cell", "cell": list(cell), "choosing": chosen_by, "scores": scores,
        "rows": measured.n, "train_seconds": results.train_seconds, "seconds": time.perf_counter() - began,
        "parameters": results.trainable_parameters,
    }  # fmt: skip


def cells(done: dict[Cell, dict[str, Any]], tasks: list[str]) -> Iterator[Cell]:
    """All rates with seed 0 first, then the best rate with two more seeds."""
    for task in tasks:
        for method, rates in RATES.items():
            yield from ((task, method, rate, 0) for rate in rates)
    for task in tasks:
        for method in RATES:
            rate = best_rate(done, task, method)
            yield from ((task, method, rate, seed) for seed in (1, 2))


def best_rate(done: dict[Cell, dict[str, Any]], task: str, method: str) -> float:
    return max(RATES[method], key=lambda rate: done[task, method, rate, 0]["choosing"])


def table(done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    yield "| task | method | trained numbers | best rate | metric | development set | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for task in COLUMNS:
        for method, rates in RATES.items():
            if all((task, method, rate, 0) in done for rate in rates):
                yield from lines(done, task, method)


def lines(done: dict[Cell, dict[str, Any]], task: str, method: str) -> Iterator[str]:
    rate = best_rate(done, task, method)
    first = done[task, method, rate, 0]
    size = f"{first['parameters']:,}"
    again = [done[task, method, rate, seed] for seed in (1, 2) if (task, method, rate, seed) in done]
    edge = " (at the edge)" if rate in (RATES[method][0], RATES[method][-1]) else ""
    for metric, one in first["scores"].items():
        values = [cell["scores"][metric]["value"] for cell in (first, *again)]
        yield (
            f"| {task} | {method} | {size} | {rate:g}{edge} | {metric} | {statistics.mean(values):.3f} "
            f"({one['low']:.3f} to {one['high']:.3f}) | {', '.join(f'{value:.3f}' for value in values)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(COLUMNS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "classification.jsonl"
    if given.table:
        print("\n".join(table(done_in(log))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    keep_memory()
    done = done_in(log)
    run_missing(
        log, done, cells(done, given.tasks.split(",")), partial(run, folder),
        lambda row: f"{row['choosing']:.3f} {row['seconds']:.0f} s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
