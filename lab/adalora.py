"""LoRA, AdaLoRA and EVA at equal parameters on two real tasks, each at its own best learning rate.

    python lab/adalora.py FOLDER [--minutes M] [--task T] [--rank R] [--method M]   run what is not done yet
    python lab/adalora.py FOLDER --table          lab/adalora.md from what is done

Each cell is one run of `rankwise train`: SmolLM2-135M, all linear layers, steps of 8 rows, linear decay, and the loss
in nats per learned token on rows that were never trained on (E2E: of meanings that were never trained on;
superbowl_facts: other answers to questions that were). A rate is swept for each method, task and budget with seed 0
over RATES, and beyond their end for as long as the end is best; the best rate gets seeds 1 and 2. Finished cells lie
in FOLDER/cells.jsonl and are not run again. What AdaLoRA starts with was settled first, on E2E at rank 8 with seed 0
(SETTLING), and is used for the rest (SETTLED). Two processes of one thread may share a folder, each
with other tasks, ranks or methods.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.runs.records import silent

STEPS = {"e2e": 100, "superbowl": 60}
BATCH, TRAINED, MEASURED, LONGEST = 8, 800, 150, 128
RATES = {8: (5e-4, 1e-3, 2e-3, 4e-3), 2: (1e-3, 2e-3, 4e-3, 8e-3)}
"""By rank: those of the second were chosen when the first were known."""
TASKS, BUDGETS, METHODS, SEEDS = ("e2e", "superbowl"), (8, 2), ("lora", "adalora", "eva"), (0, 1, 2)
SETTLED: dict[str, Any] = {"kappa": 32.0, "start": "orthonormal", "orthogonality": 0.001}
SETTLING: tuple[dict[str, Any], ...] = (
    *({"rate": 1e-3, "kappa": kappa} for kappa in (1.0, 8.0, 16.0, 32.0)),
    {"rate": 1e-3, "kappa": 32.0, "start": "gaussian"},
    {"rate": 4e-3, "kappa": 32.0},
    *({"rate": 4e-3, "kappa": kappa, "orthogonality": 0.001} for kappa in (8.0, 32.0, 64.0)),
    *({"rate": 4e-3, "kappa": kappa, "orthogonality": 0.0} for kappa in (32.0, 64.0)),
    {"rate": 4e-3, "kappa": 32.0, "orthogonality": 0.0, "start": "gaussian"},
    {"rate": 4e-3, "kappa": 32.0, "orthogonality": 0.001, "initial": 1.0},
    *({"rate": 2e-3, "kappa": kappa, "orthogonality": 0.001} for kappa in (32.0, 64.0)),
)
"""Beside orthonormal, 0.1 and 1.5 where a line does not say otherwise."""
PENALTIES = (0.0, 0.001, 0.1)
"""With the rest of SETTLED at rate 4e-3, for three seeds."""
PARAMETERS_PER_RANK = 305_280
"""Of one rank on every linear layer of SmolLM2-135M."""
T_95 = {2: 12.706, 3: 4.303}


@dataclass(frozen=True)
class Cell:
    task: str
    method: str
    rank: int
    rate: float
    seed: int
    kappa: float = 16.0
    start: str = "orthonormal"
    orthogonality: float = 0.1
    initial: float = 1.5

    def adapter(self) -> dict[str, Any]:
        if self.method == "adalora":
            return {
                "method": "adalora", "budget": f"{PARAMETERS_PER_RANK * self.rank} parameters", "start": self.start,
                "strength_rate": self.kappa, "orthogonality": self.orthogonality, "initial": self.initial,
            }  # fmt: skip
        eva = {"start": "eva"} if self.method == "eva" else {}
        return {"rank": self.rank, "alpha": 2.0 * self.rank, **eva}


def write_rows(folder: Path) -> None:
    """Rows of both tasks, the same every time."""
    for task in TASKS:
        if (folder / f"{task}-measured.jsonl").exists():
            continue
        trained, measured = e2e() if task == "e2e" else superbowl()
        for name, rows in (("trained", trained[:TRAINED]), ("measured", measured[:MEASURED])):
            text = "".join(json.dumps({"prompt": asked, "completion": said}) + "\n" for asked, said in rows)
            (folder / f"{task}-{name}.jsonl").write_text(text, encoding="utf-8")


Rows = list[tuple[str, str]]


def e2e() -> tuple[Rows, Rows]:
    with (Path(os.environ["RANKWISE_DATA"]) / "e2e" / "devset.csv").open(encoding="utf-8") as file:
        rows = [(row["mr"], row["ref"]) for row in csv.DictReader(file)]
    meanings = sorted({meaning for meaning, _ in rows})
    random.Random(0).shuffle(meanings)
    apart = set(meanings[: len(meanings) // 4])
    random.Random(1).shuffle(rows)
    return [row for row in rows if row[0] not in apart], [row for row in rows if row[0] in apart]


def superbowl() -> tuple[Rows, Rows]:
    """Short ones, of facts after the model's training. Those apart ask what others ask too, with other answers."""
    rows = list(dict.fromkeys(row for name in ("train.jsonl", "valid.jsonl") for row in short_rows(name)))
    random.Random(2).shuffle(rows)
    return rows[MEASURED:], rows


def short_rows(name: str) -> Rows:
    with (Path(os.environ["RANKWISE_DATA"]) / "superbowl_facts" / name).open(encoding="utf-8") as file:
        rows = [(row["prompt"], row["completion"]) for row in map(json.loads, file)]
    return [(asked, said) for asked, said in rows if len(asked) + len(said) < 300]


def run(cell: Cell, model: LoadedModel, folder: Path, number: int) -> dict[str, Any]:
    """Rank 8 with the eager backend, as it was begun; one backend for all methods that stand beside each other."""
    name = f"{cell.task}-{cell.method}-{cell.rank}-{number}"
    experiment = Experiment(
        model=model.config, run=name, adapter=cell.adapter(),
        data={"path": str(folder / f"{cell.task}-trained.jsonl"), "max_length": LONGEST,
              "validation": str(folder / f"{cell.task}-measured.jsonl")},
        training={"steps": STEPS[cell.task], "batch_size": BATCH, "learning_rate": cell.rate, "seed": cell.seed,
                  "backend": "eager" if cell.rank == 8 else "auto"},
    )  # fmt: skip
    trained = train(experiment, restart=True, model=model)
    results = trained.manifest.results
    assert results is not None, "it finished"
    trained.trainable.remove()
    return {
        "loss": results.validation_loss_after,
        "before": results.validation_loss_before,
        "parameters": sum(parameter_count(trained.result)),
        "seconds": results.train_seconds,
    } | ({"gram": gram(trained.result)} if cell.method == "adalora" else {})


def gram(adapter: Path) -> float:
    """How far the rows of Q are from orthonormal: |Q Q^T - 1| / sqrt(rank), the mean over layers."""
    from safetensors.torch import load_file

    found = []
    for key, rows in load_file(adapter / "adapter_model.safetensors").items():
        if "lora_A" in key:
            excess = (rows @ rows.T).sub_(torch.eye(len(rows)))
            found.append(float(excess.norm()) / math.sqrt(len(rows)))
    return statistics.mean(found)


def parameter_count(adapter: Path) -> Iterator[int]:
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  it is no dictionary
            yield math.prod(tensors.get_slice(key).get_shape())


class Lab:
    def __init__(self, folder: Path, until: float) -> None:
        self.folder, self.until = folder, until
        self.file = folder / "cells.jsonl"
        self.done: dict[str, dict[str, Any]] = {}
        self._model: LoadedModel | None = None
        self.read()

    def read(self) -> None:
        """Also what another process finished meanwhile."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.done = {key_of(asdict(Cell(**row["cell"]))): row for row in map(json.loads, lines)}

    def loss(self, cell: Cell) -> float:
        key = key_of(asdict(cell))
        if key not in self.done:
            self.read()
        if key not in self.done:
            if time.monotonic() > self.until:
                raise TimeoutError
            self._model = self._model or load(ModelConfig(name="smollm2-135m"), silent)
            row = {"cell": asdict(cell), **run(cell, self._model, self.folder, len(self.done))}
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.done[key] = row
            print(f"{cell}: {row['loss']:.4f} in {row['seconds']:.0f} s", flush=True)
        return self.done[key]["loss"]

    def best_rate(self, make: Any, rank: int) -> float:
        rates = list(RATES[rank])
        while True:
            best = min(rates, key=lambda rate: self.loss(make(rate, 0)))
            if best == max(rates) and best < 3e-2:
                rates.append(best * 2)
            elif best == min(rates) and best > 1e-4:
                rates.append(best / 2)
            else:
                return best

    def all(self, tasks: tuple[str, ...], ranks: tuple[int, ...], methods: tuple[str, ...]) -> None:
        if "e2e" in tasks and 8 in ranks and "adalora" in methods:
            for settings in SETTLING:
                self.loss(Cell("e2e", "adalora", 8, seed=0, **settings))
            for weight in PENALTIES:
                self.penalty(weight)
        for task in tasks:
            for rank in ranks:
                for method in methods:
                    self.seeds(task, method, rank)

    def penalty(self, weight: float) -> list[float]:
        settings = SETTLED | {"orthogonality": weight}
        return [self.loss(Cell("e2e", "adalora", 8, 4e-3, seed, **settings)) for seed in SEEDS]

    def seeds(self, task: str, method: str, rank: int) -> tuple[float, list[float]]:
        def make(rate: float, seed: int) -> Cell:
            return Cell(task, method, rank, rate, seed, **(SETTLED if method == "adalora" else {}))

        rate = self.best_rate(make, rank)
        return rate, [self.loss(make(rate, seed)) for seed in SEEDS]


def key_of(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=180)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--rank", choices=BUDGETS, type=int, action="append")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if asked.table:
        from adalora_table import write_table

        return write_table(Lab(folder, 0.0), Path(__file__).parent / "adalora.md")
    write_rows(folder)
    os.chdir(folder)  # the runs lie there
    try:
        Lab(folder, time.monotonic() + 60 * asked.minutes).all(
            tuple(asked.task or TASKS), tuple(asked.rank or BUDGETS), tuple(asked.method or METHODS)
        )
        print("all cells are done")
    except TimeoutError:
        print("stopped; the same command goes on from here")
        sys.exit(3)


if __name__ == "__main__":
    main()
