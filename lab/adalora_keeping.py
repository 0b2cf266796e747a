"""Where does AdaLoRA's forgetting come from? Loss on unseen rows against divergence from the base, by how it starts.

    python lab/adalora_keeping.py FOLDER TASK:VARIANT:RATE:SEED...     run the cells that are not done yet
    python lab/adalora_keeping.py FOLDER --table                       the table of what is done

The model, rows and texts of lab/keeping.py; every adapter has the parameters of LoRA of rank 16 at the end. On E2E the
adapter of seed 0 is measured at a lower strength too. Finished cells lie in FOLDER/keeping.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from claims import tasks
from keeping import ROWS, base_of, texts
from stored_cells import done_in, run_missing
from torch import Tensor

from rankwise.config.experiment import Experiment
from rankwise.data.batches import Batches
from rankwise.data.preparing import TextWriting, prepare
from rankwise.errors import TrainingError, first_line
from rankwise.evaluation.base_and_tuned import Forward, base_and_tuned
from rankwise.evaluation.forgetting import compared
from rankwise.evaluation.likelihood import likelihoods
from rankwise.methods.adalora.trainable import TrainableAdaLoRA
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.runs.records import silent
from rankwise.system.allocator import keep_memory
from rankwise.training.backend import Fused
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Workload

STRENGTHS = (1.0, 0.75)
"""The lower one on E2E with seed 0 alone."""
TEXTS = ("wikitext", "c-headers")


@dataclass(frozen=True)
class Variant:
    """`p_zero`: P starts at zero, the strengths at `strength` and the rows of Q with the length `rows`."""

    adapter: dict[str, Any] = field(default_factory=dict)
    p_zero: bool = False
    strength: float = 0.0
    method: str = "adalora"
    training: dict[str, Any] = field(default_factory=dict)
    rows: float = 1.0


def _zero(strength: float, rate: float, rows: float = 1.0, **adapter: Any) -> Variant:
    return Variant({"orthogonality": 0.0, "strength_rate": rate} | adapter, True, strength, rows=rows)


VARIANTS: dict[str, Variant] = {
    "lora": Variant({"rank": 16}, method="lora"),
    "lora-8": Variant({"rank": 8, "alpha": 16.0}, method="lora"),
    "now": Variant(),
    "unpruned": Variant({"initial": 1.0}),
    "strengths-8": Variant({"strength_rate": 8.0}),
    "strengths-2": Variant({"strength_rate": 2.0}),
    "half-scale": Variant({"scale": 0.5}),
    "p-zero": _zero(1.0, 1.0),
    "p-zero-0.58": _zero(3**-0.5, 1.0),
    "p-zero-0.38": _zero(3**-0.5 / 1.5, 1.0),
    "p-zero-0.38-early": _zero(3**-0.5 / 1.5, 1.0, final=0.7),
    "p-zero-0.58-early": _zero(3**-0.5, 1.0, final=0.7),
    "p-zero-0.58-unpruned": _zero(3**-0.5, 1.0, initial=1.0),
    "triplets": _zero(3**-0.5, 1.0, budget="16"),
    "triplets-1.2": _zero(3**-0.5, 1.0, budget="16", initial=1.2),
    "short": _zero(1.0, 1.0, rows=3**-0.5, budget="16"),
    "short-1.2": _zero(1.0, 1.0, rows=3**-0.5, budget="16", initial=1.2),
    "short-0.67": _zero(1 / 1.5, 1.0, rows=3**-0.5, budget="16"),
    "p-zero-8": _zero(1.0, 8.0),
    "p-zero-32": _zero(1.0, 32.0),
    "p-zero-penalty": _zero(1.0, 1.0, orthogonality=0.001),
    "p-zero-unpruned": _zero(1.0, 1.0, initial=1.0),
}
BUDGET = 305_280 * 16
"""Parameters of LoRA of rank 16 on all linear layers of SmolLM2-135M."""
Cell = tuple[str, str, float, int]


def experiment_of(folder: Path, cell: Cell) -> Experiment:
    task, name, rate, seed = cell
    (files,) = tasks(folder, [task])
    variant = VARIANTS[name]
    budget = {} if variant.method == "lora" else {"budget": f"{BUDGET} parameters"}
    return Experiment(
        model="smollm2-135m", run="cell", adapter={"method": variant.method} | budget | variant.adapter,
        training={"epochs": 1, "batch_size": 8, "seed": seed, "learning_rate": rate} | variant.training,
        data={"path": str(files.trained), "rows": ROWS[task], "max_length": 512, "validation": str(files.measured)},
    )  # fmt: skip


def run(folder: Path, cell: Cell, model: LoadedModel, base: Callable[[Forward], Forward]) -> dict[str, Any]:
    experiment, variant = experiment_of(folder, cell), VARIANTS[cell[1]]
    began, method = time.perf_counter(), method_of(experiment.adapter)
    prepared = prepare(experiment.data, TextWriting(model.tokenizer, model.template, model.source.name, None), silent)
    trained, rows = prepared.trained_rows, list(prepared.measured_rows)
    config = experiment.training.resolved(len(trained), model.width, experiment.auto_rate)
    tuned = method.attach(model, Setup(config, config.total_steps(len(trained)), trained))
    measured, seconds, failed, sizes = dict[str, Any](), list[float](), None, dict[str, Any]()
    try:
        if variant.p_zero:
            assert isinstance(tuned, TrainableAdaLoRA)
            start_at_zero(tuned, variant.strength, variant.rows)
        tuned.train(False)
        work = Workload.of(model.module, tuned, CAUSAL_LM, config, prepared, False, silent)
        backend = Fused(work, compiled=False)
        trainer = Trainer(tuned, Batches.of(trained, config, backend.layout), config, backend)
        seconds = [record.seconds for record in trainer.run()]
        sizes = sizes_of(tuned)
        sides = base_and_tuned(tuned)
        for strength in STRENGTHS if cell[0] == "e2e" and cell[3] == 0 else STRENGTHS[:1]:
            with tuned.scaled(strength):
                sums = [one.sums for one in likelihoods(model.module, rows)]
                kls = {}
                for name, text in texts(model).items():
                    if name in TEXTS:
                        (blocks,) = compared(base(sides.base), [sides.tuned], text)
                        kls[name] = [[block.kl, block.positions] for block in blocks]
            measured[str(strength)] = {"rows": sums, "kl": kls}
    except TrainingError as error:
        failed = first_line(error)
    finally:
        tuned.remove()
    return {
        "kind": "cell", "cell": list(cell), "measured": measured, "failed": failed, "steps": len(seconds),
        "sizes": sizes, "step_seconds": statistics.median(seconds) if seconds else None,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


@torch.no_grad()
def start_at_zero(tuned: TrainableAdaLoRA, strength: float, rows: float) -> None:
    for part in tuned.triplets.parts:
        part.P.zero_()
        part.Q.mul_(rows)
        part.strength.fill_(strength)


@torch.no_grad()
def sizes_of(tuned: Any) -> dict[str, Any]:
    """Of the change at the end: parameters, its norm, and that of its largest direction over all directions' norm."""
    squares, largest, parameters = [], [], 0
    for adapter in tuned.adapters.adapters(tuned.name).values():
        A, B = adapter.factors()
        if not A.shape[0]:
            continue
        parameters += A.numel() + B.numel()
        values = torch.linalg.svdvals(torch.linalg.qr(B.float()).R @ torch.linalg.qr(A.float().T).R.T) * adapter.scale
        squares.append(float(values.square().sum()))
        largest.append(float(values[0]) / max(1e-12, float(values.square().sum()) ** 0.5))
    return {"parameters": parameters, "norm": sum(squares) ** 0.5, "largest": statistics.mean(largest)}


class Remembered:
    """The base's logits on the texts, which are the same for all cells."""

    def __init__(self) -> None:
        self.logits: dict[bytes, Tensor] = {}

    def __call__(self, base: Forward) -> Forward:
        def forward(ids: Tensor) -> Tensor:
            key = ids.numpy().tobytes()
            if key not in self.logits:
                self.logits[key] = base(ids)
            return self.logits[key]

        return forward


def loss_of(row: dict[str, Any], strength: str = "1.0") -> float:
    sums = row["measured"][strength]["rows"]
    return sum(nats for nats, _ in sums) / sum(count for _, count in sums)


def kl_of(row: dict[str, Any], text: str, strength: str = "1.0") -> float:
    blocks = row["measured"][strength]["kl"][text]
    return sum(nats for nats, _ in blocks) / sum(count for _, count in blocks)


def line(row: dict[str, Any]) -> str:
    if row["failed"] is not None:
        return row["failed"]
    points = [
        f"{strength}: {loss_of(row, strength):.4f} " + " ".join(f"{kl_of(row, text, strength):.4f}" for text in TEXTS)
        for strength in row["measured"]
    ]
    size = row["sizes"]
    return (
        f"{'; '.join(points)}; norm {size['norm']:.1f} largest {size['largest']:.2f} {size['parameters']:,}; "
        f"{row['step_seconds']:.1f} s a step, {row['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cells", nargs="*")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "keeping.jsonl"
    if given.table:
        for cell, row in done_in(log).items():
            print(cell, line(row))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    keep_memory()
    done, model, base = done_in(log), load(base_of(folder, "e2e"), silent), Remembered()
    run_missing(log, done, map(cell_of, given.cells), lambda cell: run(folder, cell, model, base), line)


def cell_of(text: str) -> Cell:
    task, name, rate, seed = text.split(":")
    return task, name, float(rate), int(seed)


if __name__ == "__main__":
    main()
