"""Does a base in fewer bits cost quality, and do products in int8? LoRA on rows of E2E, Dolly and SST-2 (as text).

    python lab/quantized.py FOLDER [--models A,B] [--tasks e2e,...] [--bases int8,int8-int8,...] [--seeds 0,1,2]
    python lab/quantized.py FOLDER --table    the table of what is done

It runs what is not done yet. A base is how weights are stored, and after it what they are multiplied in if that is not
bfloat16. SmolLM2-135M-Instruct, or another model, learns from 400 rows in one pass, with r 16 on all linear layers and
the default rate, and is measured on 80 rows that it never saw (400 of SST-2, whose answers are one word). The table has
the loss of an answer token before and after the training, and the difference after it: from bfloat16 or, for products
in int8, from the same base with products in bfloat16; the mean over three or five seeds with its 95 % interval (paired,
Student's t). Finished cells lie in FOLDER/quantized.jsonl.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claims import tasks
from stored_cells import command

from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.system.memory import keep_memory

STARTER = "smollm2-135m"
TASKS, BASES, SEEDS = ("e2e", "dolly", "sst2"), ("none", "int8", "nf4"), ("0", "1", "2")
ROWS, BATCH, LONGEST = 400, 16, 512
QUANTILES = {3: 4.303, 5: 2.776}
"""Of Student's t, 97.5 %, by the number of seeds."""
Cell = tuple[Any, ...]
"""The task, the base and the seed, and the model where it is not the starter."""


def cells(done: object, models: list[str], tasks: list[str], bases: list[str], seeds: list[str]) -> Iterator[Cell]:
    del done
    for model in models:
        for seed in seeds:
            for task in tasks:
                yield from ((task, base, int(seed), *([model] if model != STARTER else ())) for base in bases)


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    task, base, seed, *other = cell
    (files,) = tasks(folder, [task])
    quantize, _, products = base.partition("-")
    experiment = Experiment(
        model={"name": (other or [STARTER])[0], "quantize": quantize},
        run="-".join([task, base, str(seed), *(Path(one).stem for one in other)]),
        data={"path": str(files.trained), "rows": ROWS, "validation": str(files.measured), "max_length": LONGEST},
        training={"epochs": 1, "batch_size": BATCH, "seed": seed, "matmul": products or "bfloat16"},
        validation={"steps": 100_000},
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


def table(folder: Path, done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    del folder
    yield "| model | rows | base | loss before | loss after, by seed | difference (95 %) | peak memory |"
    yield "|---|---|---|---:|---|---|---:|"
    for task, base, *model in dict.fromkeys((task, base, *model) for task, base, _, *model in done):
        plain, _, products = base.partition("-")
        other = plain if products else "none"
        found = {seed: done[task, base, seed, *model] for seed in range(10) if (task, base, seed, *model) in done}
        pairs = [(one, done[task, other, seed, *model]) for seed, one in found.items()
                 if base != other and (task, other, seed, *model) in done]  # fmt: skip
        losses = ", ".join(f"{one['after']:.4f}" for one in found.values())
        first = next(iter(found.values()))
        yield (
            f"| {', '.join(Path(one).stem for one in model) or STARTER} | {task} | {base} | {first['before']:.4f} | "
            f"{losses} | {difference([one['after'] - two['after'] for one, two in pairs])} | "
            f"{first['peak_rss_bytes'] / 1e9:.2f} GB |"
        )


def difference(apart: list[float]) -> str:
    if len(apart) not in QUANTILES:
        return ", ".join(f"{one:+.4f}" for one in apart)
    mean, half = statistics.mean(apart), QUANTILES[len(apart)] * statistics.stdev(apart) / len(apart) ** 0.5
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


if __name__ == "__main__":
    command(
        __doc__, "quantized.jsonl",
        {"models": STARTER, "tasks": ",".join(TASKS), "bases": ",".join(BASES), "seeds": ",".join(SEEDS)}, cells, run,
        lambda row: f"{row['before']:.4f} -> {row['after']:.4f} {row['seconds']:.0f} s", table,
    )  # fmt: skip
