"""Four ways to train an image classifier on CIFAR-10: the head alone (a linear probe), LoRA, AdaLoRA, every weight.

    python lab/images.py FOLDER [--sizes 100,30,10] [--methods head,lora]    run what is not done yet
    python lab/images.py FOLDER --table                                      the table of what is done

DINOv2-small (22.1M parameters) learns from 10, 30 or 100 images of each of ten classes, at 112 pixels, in ten passes.
Each method has three learning rates with seed 0; the rate with the best accuracy on 300 other training images is run
again with two more seeds. The table is of 1,000 test images, which chose nothing: the mean over seeds, and the 95 %
interval of seed 0 over its images. EfficientNet-Lite0 with adapters over its convolutions is a method of its own, with
one seed. Finished cells lie in FOLDER/images.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from claims import data
from stored_cells import alone, done_in, run_missing

from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

SIZE, EPOCHS, BATCH, CHOOSING, MEASURED = 112, 10, 16, 30, 100
"""Pixels, passes, images of a step, and images of each class that choose the rate and that are measured."""
SIZES = (100, 30, 10)
DTYPE = "float32"
"""Of the frozen weights, and so the same for all methods. Cells that name none ran before this was set, on the number
format that the machine had then, bfloat16 but for full fine-tuning."""
RATES = {
    "head": (2e-3, 1e-2, 5e-2), "lora": (2e-4, 6e-4, 2e-3), "adalora": (4e-4, 1.2e-3, 4e-3),
    "full": (1e-5, 3e-5, 1e-4), "conv-lora": (5e-4, 2e-3, 8e-3),
}  # fmt: skip
MODELS = {"conv-lora": ("efficientnet-lite0", "lora")}
"""Methods of another model than DINOv2, with one seed: the model, and the method as rankwise names it."""
SEEDS = (1, 2)
Cell = tuple[str, int, float, int]


def files(folder: Path, size: int) -> dict[str, Path]:
    """Parquet files with images of each class: the first ones train, the next ones choose the rate."""
    paths = {name: folder / f"{name}-{size}.parquet" for name in ("trained", "choosing", "measured")}
    if not all(path.exists() for path in paths.values()):
        write(data("cifar10/train.parquet"), paths["trained"], 0, size)
        write(data("cifar10/train.parquet"), paths["choosing"], max(SIZES), CHOOSING)
        write(data("cifar10/test.parquet"), paths["measured"], 0, MEASURED)
    return paths


def write(source: Path, target: Path, first: int, count: int) -> None:
    """Rows `first` to `first + count` of each class."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(source)
    seen: dict[Any, int] = defaultdict(int)
    chosen = []
    for row, label in enumerate(table["label"].to_pylist()):
        if first <= seen[label] < first + count:
            chosen.append(row)
        seen[label] += 1
    parquet.write_table(table.take(chosen), target)


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    method, size, rate, seed = cell
    paths, name = files(folder, size), f"{method}-{size}-{rate:g}-{seed}"
    model, rankwise_method = MODELS.get(method, ("dinov2-small", method))
    experiment = Experiment(
        model={"name": model, "dtype": DTYPE}, run=name, adapter={"method": rankwise_method}, images={"size": SIZE},
        data={"path": str(paths["trained"]), "validation": str(paths["choosing"])},
        training={"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": rate, "seed": seed},
        validation={"steps": 100_000},
    )  # fmt: skip
    began = time.perf_counter()
    results = train(experiment, restart=True).manifest.results
    assert results is not None
    measured = evaluate(name, data=str(paths["measured"]), forgetting=False, callback=silent)
    return {
        "kind": "cell", "cell": list(cell), "dtype": DTYPE, "choosing": results.validation_accuracy_after,
        "accuracy": measured.tuned.metrics["accuracy"].model_dump(), "rows": measured.n,
        "train_seconds": results.train_seconds, "images_per_second": results.images_per_second,
        "seconds": time.perf_counter() - began, "peak_rss_bytes": results.peak_rss_bytes,
        "parameters": results.trainable_parameters, "adapter_bytes": results.adapter_bytes,
    }  # fmt: skip


def cells(done: dict[Cell, dict[str, Any]], sizes: list[int], methods: list[str]) -> Iterator[Cell]:
    """All rates with seed 0 first, then the best rate with two more seeds."""
    for size in sizes:
        for method in methods:
            if method not in MODELS or size == max(SIZES):
                yield from ((method, size, rate, 0) for rate in RATES[method])
    for size in sizes:
        for method in methods:
            if method not in MODELS:
                rate = best_rate(done, method, size)
                yield from ((method, size, rate, seed) for seed in SEEDS)


def best_rate(done: dict[Cell, dict[str, Any]], method: str, size: int) -> float:
    return max(RATES[method], key=lambda rate: done[method, size, rate, 0]["choosing"])


def table(done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    yield (
        "| images of a class | method | trained numbers | best rate | accuracy on 1,000 test images | seeds | images a "
        "second | training | peak memory | file |"
    )
    yield "|---:|---|---:|---:|---|---|---:|---:|---:|---:|"
    for size in SIZES:
        for method, rates in RATES.items():
            if all((method, size, rate, 0) in done for rate in rates):
                yield line(done, method, size)


def line(done: dict[Cell, dict[str, Any]], method: str, size: int) -> str:
    rate = best_rate(done, method, size)
    first = done[method, size, rate, 0]
    again = [done[method, size, rate, seed] for seed in SEEDS if (method, size, rate, seed) in done]
    edge = " (at the edge)" if rate in (RATES[method][0], RATES[method][-1]) else ""
    values = [cell["accuracy"]["value"] for cell in (first, *again)]
    interval = f"{first['accuracy']['low']:.3f} to {first['accuracy']['high']:.3f}"
    return (
        f"| {size} | {method} | {first['parameters']:,} | {rate:g}{edge} | {statistics.mean(values):.3f} ({interval}) "
        f"| {', '.join(f'{value:.3f}' for value in values)} | {first['images_per_second']:.1f} | "
        f"{first['train_seconds']:.0f} s | {first['peak_rss_bytes'] / 1e9:.2f} GB | "
        f"{first['adapter_bytes'] / 1e6:.1f} MB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "images.jsonl"
    if given.table:
        print("\n".join(table(done_in(log))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    done = done_in(log)
    chosen = cells(done, [int(size) for size in given.sizes.split(",")], given.methods.split(","))
    run_missing(
        log, done, chosen, partial(alone, run, folder),
        lambda row: f"{row['accuracy']['value']:.3f} {row['seconds']:.0f} s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
