"""Does a base in fewer bits cost quality? LoRA over NF4, int8 and bfloat16, on rows of E2E and Dolly.

    python lab/quantized.py FOLDER            run what is not done yet
    python lab/quantized.py FOLDER --table    the table of what is done

SmolLM2-135M-Instruct learns from 400 rows in one pass, with r 16 on all linear layers and the default rate, and is
measured on 80 rows that it never saw. Three seeds. The table has the loss of an answer token before and after the
training, and the difference from bfloat16 after it: the mean over seeds with its 95 % interval (paired, Student's t).
Finished cells lie in FOLDER/quantized.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from claims import tasks
from stored_cells import alone, done_in, run_missing

from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.system.memory import keep_memory

TASKS, FORMATS, SEEDS = ("e2e", "dolly"), ("none", "int8", "nf4"), (0, 1, 2)
ROWS, BATCH, LONGEST = 400, 16, 512
QUANTILE = 4.303
"""Of Student's t with two degrees of freedom, 97.5 %."""
Cell = tuple[str, str, int]


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    task, format, seed = cell
    (files,) = tasks(folder, [task])
    experiment = Experiment(
        model={"name": "smollm2-135m", "quantize": format}, run="-".join(map(str, cell)),
        data={"path": str(files.trained), "rows": ROWS, "validation": str(files.measured), "max_length": LONGEST},
        training={"epochs": 1, "batch_size": BATCH, "seed": seed}, validation={"steps": 100_000},
    )  # fmt: skip
    began = time.perf_counter()
    results = train(experiment, restart=True).manifest.results
    assert results is not None, "the run is finished"
    return {
        "kind": "cell", "cell": list(cell), "before": results.validation_loss_before,
        "after": results.validation_loss_after, "loss_tokens": results.validation_loss_tokens, "steps": results.steps,
        "peak_rss_bytes": results.peak_rss_bytes, "train_seconds": results.train_seconds,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def table(done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    yield "| rows | base | loss before | loss after, by seed | difference from bfloat16 (95 %) | peak memory |"
    yield "|---|---|---:|---|---|---:|"
    for task in TASKS:
        for format in FORMATS:
            found = [done[task, format, seed] for seed in SEEDS if (task, format, seed) in done]
            if not found:
                continue
            pairs = [(done[task, format, seed], done[task, "none", seed]) for seed in SEEDS
                     if (task, format, seed) in done and (task, "none", seed) in done]  # fmt: skip
            apart = "" if format == "none" else difference([one["after"] - other["after"] for one, other in pairs])
            losses = ", ".join(f"{one['after']:.4f}" for one in found)
            yield (
                f"| {task} | {'bfloat16' if format == 'none' else format} | {found[0]['before']:.4f} | "
                f"{losses} | {apart} | "
                f"{found[0]['peak_rss_bytes'] / 1e9:.2f} GB |"
            )


def difference(apart: list[float]) -> str:
    if len(apart) < len(SEEDS):
        return "not all seeds are done"
    mean, half = statistics.mean(apart), QUANTILE * statistics.stdev(apart) / len(apart) ** 0.5
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "quantized.jsonl"
    if given.table:
        print("\n".join(table(done_in(log))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    done = done_in(log)
    chosen = ((task, format, seed) for seed in SEEDS for task in TASKS for format in FORMATS)
    run_missing(
        log, done, chosen, partial(alone, run, folder),
        lambda row: f"{row['before']:.4f} -> {row['after']:.4f} {row['seconds']:.0f} s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
