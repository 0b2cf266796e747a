"""What `--tune` chooses, against seven rates a factor of the square root of two apart, on six tasks of three starters.

    python lab/tuning.py FOLDER [--tasks e2e,dolly] [--kinds rate,tune] [--seeds 0,1] [--steps 100]    what is missing
    python lab/tuning.py FOLDER --table                                                      the tables of what is done

    regret = (loss of the rate - least loss of the seven) / least loss of the seven,    on rows that chose nothing

Each loss is the mean over the seeds for which everything is done.

A cell is one training: `rate` a whole run at one of the seven rates around the default (0), `tune` what --tune chooses
and a whole run at that rate, `short` a trial of few steps, from which the correction of
training/extras/tuning.py was read.
Trials are measured on 32 validation rows, whole runs on 64 others. Finished cells lie in FOLDER/tuning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import claims
import numpy as np
from classification import rows_of

from images import write
from rankwise.base.loading import load
from rankwise.config.experiment import Experiment
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.registry import decided, objective_of
from rankwise.rows.preparing import prepare
from rankwise.runs.metrics_log import MetricsLog, read_metrics_log
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory
from rankwise.training.extras.tuning import Trials, tune
from rankwise.training.workload import Presentation

CHOOSING, MEASURED, LABELS, SIDE = 16, 32, 160, 84
"""Rows that choose, rows that are measured, such of labels, and pixels of an image."""
STEPS = {"e2e": 60, "superbowl": 60, "gsm8k": 60, "dolly": 60, "sst-2": 100, "cifar10": 100}
"""Of a whole run, unless --steps says otherwise."""
GRID = range(-3, 4)
SHORT = {(8, 4): range(-3, 6, 2), (20, 4): range(-3, 6, 2)}
"""Trials: steps, and by how much their batch is smaller than the run's; at which rates."""
LANGUAGE = {"e2e": (4, 180, 120), "superbowl": (4, 220, 120), "gsm8k": (4, 260, 120), "dolly": (4, 350, 110)}
"""Rows of a step, characters of a row at most, and rows to train on."""
TASKS = (*LANGUAGE, "sst-2", "cifar10")
Cell = tuple[str, str, int, int, int, int]
"""Task, kind, steps, by how much the batch is smaller, half octaves from the default rate, seed."""


def language(folder: Path, task: str) -> Experiment:
    batch, longest, count = LANGUAGE[task]
    every = list(dict.fromkeys(row for part in claims.SETS[task]() for row in claims.shorter(part, longest)))
    rows = claims.shuffled(every, 6)
    apart, rows = rows[: CHOOSING + MEASURED], rows[CHOOSING + MEASURED :][:count]
    return Experiment(
        model="smollm2-135m", run="tuning", objective="causal-lm",
        data={"path": str(claims.written(folder, f"{task}-trained", rows)),
              "validation": str(claims.written(folder, f"{task}-apart", apart))},
        training={"batch_size": batch},
    )  # fmt: skip


def labels(folder: Path, task: str) -> Experiment:
    rows = rows_of(task, "train")
    random.Random(0).shuffle(rows)
    cut = CHOOSING + LABELS
    paths = {"trained": rows[cut : cut + 800], "apart": rows[:cut]}
    for name, part in paths.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{task}-{name}.jsonl").write_text(text, encoding="utf-8")
    return Experiment(
        model={"name": "minilm", "dtype": "float32"}, run="tuning", objective="sequence-classification",
        data={"path": str(folder / f"{task}-trained.jsonl"), "validation": str(folder / f"{task}-apart.jsonl")},
        training={"batch_size": 16},
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
        training={"batch_size": 8},
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path, str], Experiment]] = {
    **dict.fromkeys(LANGUAGE, language), "sst-2": labels, "cifar10": images,
}  # fmt: skip


@lru_cache(maxsize=1)
def loaded(folder: Path, task: str, steps: int, seed: int) -> tuple[Trials, Trials, float]:
    """Trials that are measured on the rows that choose, the same measured on the other rows, and the default rate."""
    experiment = MAKERS[task](folder, task)
    training = experiment.training.model_copy(update={"steps": steps, "seed": seed})
    experiment = decided(experiment.model_copy(update={"training": training}), silent)
    objective = objective_of(experiment.objective, experiment.rows, silent)
    model, method = load(experiment.base, silent, objective.kind), method_of(experiment.adapter)
    prepared = prepare(experiment.data, objective.rows.encoding(model), silent)
    order = random.Random(0).sample(list(prepared.validation), len(prepared.validation))
    choosing, measured = (replace(prepared, validation=_sorted(part)) for part in (order[:CHOOSING], order[CHOOSING:]))
    config = experiment.training.resolved(len(prepared.trained), model.width, experiment.auto_rate)
    setup = Setup(
        config,
        steps,
        prepared.trained_rows,
        heads=objective.heads(model),
        load=partial(load, kind=objective.kind),
        callback=silent,
    )
    first, second = (
        Trials(
            model=model,
            method=method,
            objective=objective,
            setup=setup,
            adapter=experiment.adapter,
            presentation=Presentation(experiment.data.packing, experiment.images),
            prepared=rows,
        )
        for rows in (choosing, measured)
    )
    return first, second, float(config.learning_rate)


def _sorted(numbers: list[Any]) -> Any:
    return np.sort(np.array(numbers))


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    task, kind, steps, smaller, exponent, seed = cell
    choosing, measured, default = loaded(folder, task, STEPS[task] if kind == "short" else steps, seed)
    trials, batch = choosing if kind == "short" else measured, choosing.setup.training.batch_size
    rate, tuning, began = default * 2 ** (exponent / 2), None, time.process_time()
    if kind == "tune":
        tuning = tune(choosing, None, silent)
        rate = tuning.learning_rate
    tuned = time.process_time()
    trial = trials.run(rate, steps, max(1, batch // smaller))
    return {
        "kind": "cell", "cell": list(cell), "rate": trial.rate, "default": default, "loss": trial.loss,
        "seconds": time.process_time() - tuned, "tuning_seconds": tuned - began,
        "tuning": tuning and tuning.model_dump(mode="json"),
    }  # fmt: skip


def cells(tasks: list[str], kinds: list[str], seeds: list[int], whole: int | None) -> Iterator[Cell]:
    for seed, task in product(seeds, tasks):
        steps = whole or STEPS[task]
        if "short" in kinds:
            yield from ((task, "short", few, part, at, seed) for (few, part), rates in SHORT.items() for at in rates)
        if "rate" in kinds:
            yield from ((task, "rate", steps, 1, at, seed) for at in (0, 2, -2, 1, -1, 3, -3))
        if "tune" in kinds:
            yield (task, "tune", steps, 1, 0, seed)


def done_in(log: Path) -> dict[Cell, dict[str, Any]]:
    """Cells of seed 0 have no seed in the file."""
    rows = read_metrics_log(log) if log.exists() else []
    done: dict[Cell, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "cell":
            cell: Any = (*row["cell"], 0)[:6]
            done[cell] = row
    return done


def table(done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    """Of the tasks whose seven rates are done."""
    yield (
        "| task | steps | seeds | best of seven | its loss | default | its regret | chosen | its regret "
        "| trials, of the run's time |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    regrets: list[float] = []
    for task, steps in dict.fromkeys((task, steps) for task, kind, steps, *_ in done if kind == "tune"):
        known = sorted({cell[5] for cell in done})
        seeds = [seed for seed in known if all(cell in done for cell in cells([task], ["rate", "tune"], [seed], steps))]
        if not seeds:
            continue
        losses = {at: statistics.mean(done[task, "rate", steps, 1, at, seed]["loss"] for seed in seeds) for at in GRID}
        chosen = [done[task, "tune", steps, 1, 0, seed] for seed in seeds]
        best = min(losses, key=lambda at: losses[at])
        least, default = losses[best], chosen[0]["default"]
        regrets.append(statistics.mean(one["loss"] for one in chosen) / least - 1)
        share = sum(one["tuning_seconds"] for one in chosen) / sum(one["seconds"] for one in chosen)
        rates = ", ".join(f"{one['rate']:.2g}" for one in chosen)
        yield (
            f"| {task} | {steps} | {len(seeds)} | {default * 2 ** (best / 2):.2g} | {least:.4f} | {default:.2g} "
            f"| {losses[0] / least - 1:+.1%} | {rates} | {regrets[-1]:+.1%} | {share:.0%} |"
        )
    if regrets:
        yield f"\nMedian regret of {len(regrets)} lines {statistics.median(regrets):+.2%}, worst {max(regrets):+.2%}."


def curves(done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    """Every loss, by half octaves from the default."""
    yield "| task | steps | part of the rows | seed | " + " | ".join(f"{at:+d}" for at in range(-3, 6)) + " |"
    yield "|---|---:|---:|---:|" + "---:|" * 9
    groups: dict[tuple[str, int, int, int], dict[int, float]] = defaultdict(dict)
    for (task, kind, steps, part, at, seed), cell in done.items():
        if kind in ("short", "rate"):
            groups[task, steps, part, seed][at] = cell["loss"]
    for (task, steps, part, seed), losses in groups.items():
        row = " | ".join(f"{losses[at]:.4f}" if at in losses else "" for at in range(-3, 6))
        yield f"| {task} | {steps} | 1/{part} | {seed} | {row} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--kinds", default="rate,tune,short")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "tuning.jsonl"
    if given.table:
        print("\n".join([*table(done_in(log)), "", *curves(done_in(log))]))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    keep_memory()
    done, began = done_in(log), time.monotonic()
    with MetricsLog(log) as written:
        for cell in cells(
            given.tasks.split(","), given.kinds.split(","), [int(seed) for seed in given.seeds.split(",")], given.steps
        ):  # fmt: skip
            if cell not in done and time.monotonic() - began < given.seconds:
                done[cell] = run(folder, cell)
                written.append(done[cell])
                print(cell, f"{done[cell]['loss']:.4f}", f"{done[cell]['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
