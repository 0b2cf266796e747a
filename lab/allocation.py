"""Does it pay to move a small budget of rank between layers? Seven ways to spend it, at equal parameters.

    python lab/allocation.py FOLDER [--tasks cifar10,rte] [--methods lora,mlp] [--ranks 2] [--seeds 0]   what is missing
    python lab/allocation.py FOLDER --table                                                the table of what is done

    lora       the same rank on every linear layer
    mlp        the same rank on the linear layers of the MLPs alone
    gradient   before training, more rank where the mean of |weight x gradient| over 64 rows is larger (the idea of
               GoRA): at least 1 and at most 4 times the mean rank
    adalora    training prunes from 1.5 times the budget, by sensitivity
    eva        ranks and start by the directions of the inputs (language models only)
    adalora-eva, gates   AdaLoRA with another start, and with another measure (rivals.py)

All have the parameters of LoRA of the named rank on every linear layer, within a hundredth, and a scale of 2. CoLA,
SST-2 and RTE: MiniLM, 2,000 rows of at most 300 characters, 300 steps of 16. CIFAR-10: DINOv2-small, 1,000 images of
84 pixels, 300 steps of 8. E2E: SmolLM2-135M, the rows of lab/adalora.py, 100 steps of 8. A method's rates are run
with seed 0; the best on rows apart gets the other seeds. The table is of other rows, which chose nothing. Finished
cells lie in FOLDER/allocation.jsonl.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import adalora
import torch
from advising import glue
from classification import rows_of
from keeping import QUANTILES
from rivals import rival
from stored_cells import command, fresh

import images
from rankwise.adapters.base_layers import weight_of
from rankwise.adapters.targets import chosen_paths
from rankwise.base.loading import load
from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.config.adapters import LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.objectives.registry import decided, objective_of
from rankwise.rows.preparing import prepare
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

METHODS = ("lora", "mlp", "gradient", "adalora", "eva", "adalora-eva", "gates")
MLP = re.compile(r"(intermediate|(?<!attention\.)output)\.dense$|fc[12]$|(gate|up|down)_proj$")
"""Paths of the linear layers of the MLPs of BERT, DINOv2 and Llama."""
RATES = {"e2e": (4e-3, 8e-3), "sst-2": (2e-4, 4e-4, 8e-4)}
RATES |= dict.fromkeys(("cifar10", "cola", "rte"), (4e-4, 8e-4, 1.6e-3))
METRICS = {
    "cifar10": ("accuracy", "cross_entropy"), "cola": ("matthews", "cross_entropy"),
    "sst-2": ("accuracy", "cross_entropy"), "rte": ("accuracy", "cross_entropy"), "e2e": ("loss",),
}  # fmt: skip
READ, MOST, SIDE = 64, 4, 84
"""Rows whose gradient is looked at, the highest rank as a multiple of the mean one, and pixels."""
Cell = tuple[str, str, int, float, int]


def experiment_of(folder: Path, cell: Cell, adapter: Mapping[str, Any]) -> Experiment:
    task, _, _, rate, seed = cell
    language = task == "e2e"
    settings: dict[str, Any] = {"images": {"size": SIDE}} if task == "cifar10" else {}
    model = {"cifar10": "dinov2-small", "e2e": "smollm2-135m"}.get(task, "minilm")
    trained, choosing, _ = files(folder, task)
    data: dict[str, Any] = {"path": str(trained), "validation": str(choosing)}
    steps = {"steps": 100, "batch_size": 8} if language else {"steps": 300, "batch_size": 8 if settings else 16}
    return Experiment(
        model={"name": model, "dtype": "auto" if language else "float32"}, run="-".join(map(str, cell)),
        adapter=adapter, data=data | ({"max_length": adalora.LONGEST} if language else {}),
        objective="auto" if language or settings else "sequence-classification",
        training=steps | {"learning_rate": rate, "seed": seed}, validation={"steps": 100_000}, **settings,
    )  # fmt: skip


def files(folder: Path, task: str) -> tuple[Path, Path, Path]:
    """Rows to train on, rows that choose the rate, and rows that are measured."""
    if task == "cifar10":
        paths = images.files(folder, 100)
        return paths["trained"], paths["choosing"], paths["measured"]
    trained, choosing, measured = (folder / f"{task}-{part}.jsonl" for part in ("trained", "choosing", "measured"))
    if not measured.exists():
        if task == "e2e":
            parts: list[list[dict[str, Any]]] = [
                [{"prompt": asked, "completion": answer} for asked, answer in rows] for rows in adalora.e2e()
            ]
            rows, apart = parts[0][: adalora.TRAINED], parts[1]
            lists = rows, apart[adalora.MEASURED : 2 * adalora.MEASURED], apart[: adalora.MEASURED]
        else:
            rows = glue(task)
            random.Random(1).shuffle(rows)
            lists = rows[400:2400], rows[:400], rows_of(task, "dev")
        for path, part in zip((trained, choosing, measured), lists, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return trained, choosing, measured


def adapter_of(folder: Path, cell: Cell) -> dict[str, Any]:
    """Its settings, with the ranks named where the method does not find them itself."""
    _, method, rank, _, _ = cell
    same = {"method": "lora", "rank": rank, "alpha": 2.0 * rank}
    if method in ("lora", "eva"):
        return same | ({"start": "eva"} if method == "eva" else {})
    sizes, importance = looked_at(folder, cell, gradients=method == "gradient")
    total = rank * sum(sizes.values())
    if method in ("adalora", "adalora-eva", "gates"):
        return {"method": "adalora", "budget": f"{total} parameters"}
    if method == "mlp":
        wanted = {path: float(size) for path, size in sizes.items() if MLP.search(path)}
        assert wanted, f"none of {list(sizes)[:8]} is known as a layer of an MLP"
    else:
        wanted = importance
    ranks = ranks_of(wanted, sizes, total, MOST * rank if method == "gradient" else total)
    return {
        "method": "lora", "targets": list(ranks), "rank_pattern": ranks,
        "alpha_pattern": {path: 2.0 * one for path, one in ranks.items()},
    }  # fmt: skip


def ranks_of(wanted: Mapping[str, float], sizes: Mapping[str, int], total: int, most: int) -> dict[str, int]:
    """Ranks of at least 1 and at most `most` whose parameters are in the proportions `wanted`, up to `total`."""
    whole = sum(wanted.values())
    ranks, left = dict.fromkeys(wanted, 1), total - sum(sizes[path] for path in wanted)
    while True:
        open_to = [path for path, rank in ranks.items() if rank < most and sizes[path] <= left]
        if not open_to:
            return ranks
        path = max(open_to, key=lambda one: wanted[one] / whole * total - ranks[one] * sizes[one])
        ranks[path], left = ranks[path] + 1, left - sizes[path]


def looked_at(folder: Path, cell: Cell, *, gradients: bool) -> tuple[dict[str, int], dict[str, float]]:
    """Parameters of one rank on each layer; and how much the loss of some training rows depends on its weight."""
    experiment = decided(experiment_of(folder, cell, {"method": "lora"}), silent)
    objective = objective_of(experiment.objective, experiment.rows, silent)
    model = load(experiment.base.model_copy(update={"dtype": "float32"}), silent, objective.kind)
    heads = objective.heads(model)
    weights: dict[str, Any] = {
        path: weight_of(model.module.get_submodule(path)) for path in chosen_paths(model.module, LoraConfig())
        if not path.endswith(heads)
    }  # fmt: skip
    sizes = {path: sum(weight.shape) for path, weight in weights.items()}
    if not gradients:
        return sizes, {}
    prepared = prepare(experiment.data, objective.rows.encoding(model), silent)
    for weight in weights.values():
        weight.requires_grad_(True)
    for batch in objective.loss.batches(list(prepared.trained_rows)[:READ], 1024):
        objective.loss(model.module, batch).backward()
    with torch.no_grad():
        return sizes, {path: float((weight * weight.grad).abs().mean()) for path, weight in weights.items()}


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    began, adapter = time.perf_counter(), adapter_of(folder, cell)
    experiment = experiment_of(folder, cell, adapter)
    fresh(experiment.run)
    with rival(cell[1]):
        results = train(experiment, restart=True).manifest.results
    assert results is not None, "it finished"
    measured = evaluate(
        experiment.run, data=str(files(folder, cell[0])[2]), base=False, forgetting=False, callback=silent
    )
    return {
        "kind": "cell", "cell": list(cell), "choosing": results.validation_loss_after,
        "scores": {name: one.model_dump() for name, one in measured.tuned.metrics.items()},
        "parameters": results.trainable_parameters, "ranks": adapter.get("rank_pattern"),
        "train_seconds": results.train_seconds, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def best_rate(done: Mapping[Cell, Any], task: str, method: str, rank: int) -> float | None:
    """None while a rate is missing."""
    cells = [(task, method, rank, rate, 0) for rate in RATES[task]]
    if not all(cell in done for cell in cells):
        return None
    return min(cells, key=lambda cell: done[cell]["choosing"])[3]


def cells(
    done: Mapping[Cell, Any], tasks: list[str], methods: list[str], ranks: list[str], seeds: list[str]
) -> Iterator[Cell]:
    chosen = [(task, method, int(rank)) for task in tasks for rank in ranks for method in methods
              if "eva" not in method or task == "e2e"]  # fmt: skip
    for task, method, rank in chosen:
        yield from ((task, method, rank, rate, 0) for rate in RATES[task])
        rate = best_rate(done, task, method, rank)
        assert rate is not None, "all rates are done"
        yield from ((task, method, rank, rate, int(seed)) for seed in seeds)


def table(_: Path, done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    yield "| rows | rank | method | parameters | best rate | loss apart | metric | mean | seeds | against lora (95 %) |"
    yield "|---|---:|---|---:|---:|---:|---|---:|---|---|"
    for task, method, rank in dict.fromkeys((cell[0], cell[1], cell[2]) for cell in done):
        if (rate := best_rate(done, task, method, rank)) is None:
            continue
        rates, rows = RATES[task], seeds_of(done, task, method, rank)
        edge = " (at the edge)" if rate in (rates[0], rates[-1]) else ""
        apart = statistics.mean(row["choosing"] for row in rows)
        for metric in METRICS[task]:
            values = [row["scores"][metric]["value"] for row in rows]
            others = [row["scores"][metric]["value"] for row in seeds_of(done, task, "lora", rank)]
            yield (
                f"| {task} | {rank} | {method} | {rows[0]['parameters']:,} | {rate:g}{edge} | {apart:.4f} | {metric} | "
                f"{statistics.mean(values):.4f} | {', '.join(f'{value:.4f}' for value in values)} | "
                f"{'' if method == 'lora' else against(values, others)} |"
            )


def seeds_of(done: Mapping[Cell, Any], task: str, method: str, rank: int) -> list[dict[str, Any]]:
    """At the best rate."""
    rate = best_rate(done, task, method, rank)
    cells = [] if rate is None else [(task, method, rank, rate, seed) for seed in range(3)]
    return [done[cell] for cell in cells if cell in done]


def against(values: list[float], others: list[float]) -> str:
    if len(values) < 3 or len(others) < 3:
        return ""
    apart = [value - other for value, other in zip(values, others, strict=True)]
    half, mean = QUANTILES[3] * statistics.stdev(apart) / 3**0.5, statistics.mean(apart)
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def main() -> None:
    command(
        __doc__, "allocation.jsonl",
        {"tasks": ",".join(METRICS), "methods": ",".join(METHODS), "ranks": "2", "seeds": "0,1,2"}, cells, run,
        lambda row: f"{row['choosing']:.4f} apart, {row['seconds']:.0f} s", table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
