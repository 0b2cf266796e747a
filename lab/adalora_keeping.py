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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from claims import tasks
from keeping import ROWS, base_of, texts
from stored_cells import done_in, run_missing
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.experiment import Experiment
from rankwise.errors import TrainingError, first_line
from rankwise.evaluation.forgetting import compared
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.subject import Forward, base_and_tuned
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.preparing import prepare
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory
from rankwise.training.backend import Fused
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Presentation, Workload

STRENGTHS = (1.0, 0.75)
"""The lower one on E2E with seed 0 alone."""
TEXTS = ("wikitext", "c-headers")


@dataclass(frozen=True)
class Variant:
    """`start`: strengths, and the length of the rows of Q, with P at zero; None for the start that `adapter` names."""

    adapter: dict[str, Any]
    start: tuple[float, float] | None = None
    strengths: tuple[float, ...] | None = None
    """Those at which it is measured, if not the usual ones."""


def _zero(strengths: float, rows: float, **adapter: Any) -> Variant:
    return Variant({"start": "orthonormal", "orthogonality": 0.0, "strength_rate": 1.0} | adapter, (strengths, rows))


PAPER: dict[str, Any] = {"start": "orthonormal", "strength_rate": 32.0, "orthogonality": 0.001}
VARIANTS: dict[str, Variant] = {
    "lora": Variant({"method": "lora", "rank": 16}),
    "paper": Variant(PAPER),
    "zero-unit": _zero(3**-0.5, 1.0),
    "zero-unit-early": _zero(3**-0.5, 1.0, final=0.7),
    "zero-unit-unpruned": _zero(3**-0.5, 1.0, initial=1.0),
    "zero-unit-triplets": _zero(3**-0.5, 1.0, budget="16"),
    "zero": _zero(1.0, 3**-0.5, budget="16"),
    "zero-fine": replace(_zero(1.0, 3**-0.5, budget="16"), strengths=(1.0, 0.95, 0.9, 0.85)),
    "zero-0.67": _zero(1 / 1.5, 3**-0.5, budget="16"),
    "zero-1.2": _zero(1.0, 3**-0.5, budget="16", initial=1.2),
}
"""`paper`: strengths at zero and their rate 32 times that of P and Q, the default until now. `zero`: the default since,
where triplets compete one for one. With `unit`, the rows of Q have length 1 and the strengths are 0.58, and competition
is by parameters unless the name says otherwise. `early`: the ranks are decided after 30 % of the steps, not 60 %.
`unpruned`: the first ranks stay. `1.2`: a fifth more triplets at first, not half as many again.
`0.67`: strengths of two thirds. `fine`: measured at strengths near 1, to be compared at LoRA's loss."""
BUDGET = 305_280 * 16
"""Parameters of LoRA of rank 16 on all linear layers of SmolLM2-135M."""
Cell = tuple[str, str, float, int]


def experiment_of(folder: Path, cell: Cell) -> Experiment:
    task, name, rate, seed = cell
    (files,) = tasks(folder, [task])
    usual = {} if name == "lora" else {"method": "adalora", "budget": f"{BUDGET} parameters"}
    return Experiment(
        model="smollm2-135m", run="cell", adapter=usual | VARIANTS[name].adapter,
        training={"epochs": 1, "batch_size": 8, "seed": seed, "learning_rate": rate},
        data={"path": str(files.trained), "rows": ROWS[task], "max_length": 512, "validation": str(files.measured)},
    )  # fmt: skip


def run(folder: Path, cell: Cell, model: LoadedModel, base: Callable[[Forward], Forward]) -> dict[str, Any]:
    experiment, variant = experiment_of(folder, cell), VARIANTS[cell[1]]
    began, method = time.perf_counter(), method_of(experiment.adapter)
    prepared = prepare(experiment.data, TextWriting(model.tokenizer, model.template, model.source.name, None), silent)
    trained, rows = prepared.trained_rows, list(prepared.measured_rows)
    config = experiment.training.resolved(len(trained), model.width, experiment.auto_rate)
    tuned = method.attach(model, Setup(config, config.total_steps(len(trained)), trained, load=load))
    measured, seconds, failed, sizes = dict[str, Any](), list[float](), None, dict[str, Any]()
    try:
        if variant.start is not None:
            assert isinstance(tuned, TrainableAdaLora)
            start_at_zero(tuned, *variant.start)
        tuned.train(False)
        work = Workload.of(tuned, objective_named("causal-lm"), config, prepared, Presentation(), silent)
        backend = Fused(work)
        trainer = Trainer(tuned, Batches.of(trained, config, backend.layout), config, backend)
        seconds = [record.seconds for record in trainer.run()]
        sizes = sizes_of(tuned)
        sides = base_and_tuned(tuned)
        for strength in variant.strengths or (STRENGTHS if cell[0] == "e2e" and cell[3] == 0 else STRENGTHS[:1]):
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
def start_at_zero(tuned: TrainableAdaLora, strengths: float, rows: float) -> None:
    for part in tuned.triplets.parts:
        part.P.zero_()
        part.Q.mul_(rows)
        part.strength.fill_(strengths)


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
    kls = " ".join(f"{kl_of(row, text):.4f}" for text in TEXTS)
    return f"{loss_of(row):.4f} {kls}; {row['step_seconds']:.1f} s a step, {row['seconds']:.0f} s"


def plain_kl(row: dict[str, Any], text: str, strength: str) -> float:
    return row["measured"][strength]["kl"][text]


def table(done: dict[Cell, dict[str, Any]], plain: dict[tuple[str, str, int], dict[str, Any]]) -> Iterator[str]:
    """`plain` are LoRA's cells of lab/keeping.py, on the same rows with the same seeds."""
    yield "| rows | seed | variant | rate | strength | loss | against LoRA | KL, WikiText-2 and C | of LoRA's |"
    yield "|---|---:|---|---:|---:|---:|---:|---|---|"
    for (task, name, rate, seed), row in sorted(done.items(), key=lambda pair: list(ROWS).index(pair[0][0])):
        for strength in row["measured"]:
            other = plain[task, "plain", seed]
            at = strength if strength in other["measured"] else "1.0"
            kls = [kl_of(row, text, strength) for text in TEXTS]
            shares = [kl / plain_kl(other, text, at) for kl, text in zip(kls, TEXTS, strict=True)]
            loss = loss_of(row, strength)
            yield (
                f"| {task} | {seed} | {name} | {rate:g} | {strength} | {loss:.4f} | {loss - loss_of(other, at):+.4f} "
                f"| {', '.join(f'{kl:.4f}' for kl in kls)} | {', '.join(f'{share:.2f}' for share in shares)} |"
            )


def at_equal_loss(done: dict[Cell, dict[str, Any]], plain: dict[tuple[str, str, int], dict[str, Any]]) -> Iterator[str]:
    """Shares of LoRA's divergence at the strength of AdaLoRA at which its loss is LoRA's, on the line between the two
    measured strengths around it."""
    yield "| rows | variant | seeds | strength | of LoRA's KL at its loss, WikiText-2 and C | means |"
    yield "|---|---|---|---|---|---|"
    for task, name in dict.fromkeys((cell[0], cell[1]) for cell in done if VARIANTS[cell[1]].strengths):
        cells = sorted((cell for cell in done if cell[:2] == (task, name)), key=lambda cell: cell[3])
        met = [meeting(done[cell], plain[task, "plain", cell[3]]) for cell in cells]
        shares = [
            [kl / plain_kl(plain[task, "plain", cell[3]], text, "1.0") for kl, text in zip(kls, TEXTS, strict=True)]
            for cell, (_, kls) in zip(cells, met, strict=True)
        ]
        means = [statistics.mean(values) for values in zip(*shares, strict=True)]
        yield (
            f"| {task} | {name} | {', '.join(str(cell[3]) for cell in cells)} "
            f"| {', '.join(f'{strength:.3f}' for strength, _ in met)} "
            f"| {'; '.join(', '.join(f'{share:.2f}' for share in pair) for pair in shares)} "
            f"| {', '.join(f'{value:.2f}' for value in means)} |"
        )


def meeting(row: dict[str, Any], other: dict[str, Any]) -> tuple[float, list[float]]:
    """The strength, and the divergence on each text. At full strength where that has a higher loss already."""
    goal = loss_of(other)
    points = [(float(at), loss_of(row, at), [kl_of(row, text, at) for text in TEXTS]) for at in row["measured"]]
    for (higher, lost, kls), (lower, more, less) in pairwise(points):
        if lost <= goal <= more:
            part = (goal - lost) / (more - lost)
            between = [kl + part * (low - kl) for kl, low in zip(kls, less, strict=True)]
            return higher + part * (lower - higher), between
    return points[0][0], points[0][2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cells", nargs="*")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "keeping.jsonl"
    if given.table:
        done, plain = done_in(log), done_in(Path(__file__).parent / "keeping" / "keeping.jsonl")
        print("\n".join([*table(done, plain), "", *at_equal_loss(done, plain)]))
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
