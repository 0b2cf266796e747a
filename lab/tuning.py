"""What `--tune` chooses, against seven rates a factor of the square root of two apart, on six tasks of three starters.

    python lab/tuning.py FOLDER [--tasks e2e,dolly] [--kinds rate,tune,short]    run what is not done yet
    python lab/tuning.py FOLDER --table                                          the tables of what is done

    regret = (loss of the rate - least loss of the seven) / least loss of the seven,    on rows that chose nothing

A cell is one training: `rate` a whole run at one of the seven rates around the default (0), `tune` what --tune chooses
and a whole run at that rate, `short` a trial of few steps, from which the correction of training/tuning.py was read.
Trials are measured on 32 validation rows, whole runs on 64 others. Each task's model is loaded once; finished cells lie
in FOLDER/tuning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import claims
from classification import rows_of

from images import write
from rankwise.config.experiment import Experiment
from rankwise.data.preparing import prepare
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.registry import decided, objective_of
from rankwise.runs.metrics_log import MetricsLog, read_metrics_log
from rankwise.runs.records import silent
from rankwise.system.allocator import keep_memory
from rankwise.training.trials import Trials

STEPS, CHOOSING, MEASURED, SIDE = 60, 16, 32, 84
"""Steps of a whole run, rows that choose and rows that are measured, and pixels of an image."""
GRID = range(-3, 4)
SHORT = {(12, 4): range(-3, 6, 2), (6, 1): range(-3, 6, 2)}
"""Trials: steps, and by how much their batch is smaller than the run's; at which rates."""
LANGUAGE = {"e2e": (4, 180, 120), "superbowl": (4, 220, 120), "gsm8k": (4, 260, 120), "dolly": (4, 350, 110)}
"""Rows of a step, characters of a row at most, and rows to train on."""
TASKS = (*LANGUAGE, "sst-2", "cifar10")
Cell = tuple[str, str, int, int, int]


def language(folder: Path, task: str) -> Experiment:
    batch, longest, count = LANGUAGE[task]
    every = list(dict.fromkeys(row for part in claims.SETS[task]() for row in claims.shorter(part, longest)))
    rows = claims.shuffled(every, 6)
    apart, rows = rows[: CHOOSING + MEASURED], rows[CHOOSING + MEASURED :][:count]
    return Experiment(
        model="smollm2-135m", run="tuning", objective="causal-lm",
        data={"path": str(claims.written(folder, f"{task}-trained", rows)),
              "validation": str(claims.written(folder, f"{task}-apart", apart))},
        training={"steps": STEPS, "batch_size": batch},
    )  # fmt: skip


def labels(folder: Path, task: str) -> Experiment:
    rows = rows_of(task, "train")
    random.Random(0).shuffle(rows)
    cut = CHOOSING + MEASURED * 3
    paths = {"trained": rows[cut : cut + 240], "apart": rows[:cut]}
    for name, part in paths.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{task}-{name}.jsonl").write_text(text, encoding="utf-8")
    return Experiment(
        model={"name": "minilm", "dtype": "float32"}, run="tuning", objective="sequence-classification",
        data={"path": str(folder / f"{task}-trained.jsonl"), "validation": str(folder / f"{task}-apart.jsonl")},
        training={"steps": STEPS, "batch_size": 8},
    )  # fmt: skip


def images(folder: Path, task: str) -> Experiment:
    paths = {"trained": (0, 24), "apart": (100, 11)}
    for name, (first, count) in paths.items():
        target = folder / f"{task}-{name}.parquet"
        if not target.exists():
            write(claims.data("cifar10/train.parquet"), target, first, count)
    return Experiment(
        model="dinov2-small", run="tuning", images={"size": SIDE}, objective="image-classification",
        data={"path": str(folder / f"{task}-trained.parquet"), "validation": str(folder / f"{task}-apart.parquet")},
        training={"steps": STEPS, "batch_size": 8},
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path, str], Experiment]] = {
    **dict.fromkeys(LANGUAGE, language), "sst-2": labels, "cifar10": images,
}  # fmt: skip


@cache
def loaded(folder: Path, task: str) -> tuple[Trials, Trials, float]:
    """Trials that are measured on the rows that choose, the same measured on the other rows, and the default rate."""
    experiment = decided(MAKERS[task](folder, task), silent)
    objective = objective_of(experiment, silent)
    model, method = objective.load(experiment.base, silent), method_of(experiment.adapter)
    prepared = prepare(experiment.data, objective.writing(model), silent)
    order = random.Random(0).sample(list(prepared.measured), len(prepared.measured))
    choosing, measured = (replace(prepared, measured=_sorted(part)) for part in (order[:CHOOSING], order[CHOOSING:]))
    config = experiment.training.resolved(len(prepared.trained), model.width, experiment.auto_rate)
    setup = Setup(
        config, STEPS, prepared.trained_rows, heads=objective.heads(model), load=objective.load, callback=silent
    )
    first, second = (Trials(experiment, model, method, objective, setup, rows) for rows in (choosing, measured))
    return first, second, float(config.learning_rate)


def _sorted(numbers: list[Any]) -> Any:
    import numpy as np

    return np.sort(np.array(numbers))


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    task, kind, steps, smaller, exponent = cell
    choosing, measured, default = loaded(folder, task)
    trials, batch = choosing if kind == "short" else measured, choosing.setup.training.batch_size
    began = time.perf_counter()
    trial = trials.run(default * 2 ** (exponent / 2), steps, max(1, batch // smaller))
    return {
        "kind": "cell", "cell": list(cell), "rate": trial.rate, "loss": trial.loss, "losses": trial.losses[-5:],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def cells(tasks: list[str], kinds: list[str]) -> Iterator[Cell]:
    for task in tasks:
        if "short" in kinds:
            yield from ((task, "short", steps, part, at) for (steps, part), rates in SHORT.items() for at in rates)
        if "rate" in kinds:
            yield from ((task, "rate", STEPS, 1, at) for at in (0, 2, -2, 1, -1, 3, -3))


def done_in(log: Path) -> dict[Cell, dict[str, Any]]:
    rows = read_metrics_log(log) if log.exists() else []
    return {tuple(row["cell"]): row for row in rows if row["kind"] == "cell"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--kinds", default="rate,tune,short")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "tuning.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    keep_memory()
    done, began = done_in(log), time.monotonic()
    with MetricsLog(log) as written:
        for cell in cells(given.tasks.split(","), given.kinds.split(",")):
            if cell not in done and time.monotonic() - began < given.seconds:
                done[cell] = run(folder, cell)
                written.append(done[cell])
                print(cell, f"{done[cell]['loss']:.4f}", f"{done[cell]['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
