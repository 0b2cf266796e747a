"""The table of lab/adalora.md, made from finished cells and nothing else."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adalora import BUDGETS, METHODS, PENALTIES, SEEDS, SETTLED, SETTLING, STEPS, T_95, TASKS, Cell, Lab, key_of

EVEN = 0.01
"""Of the parameters: beyond it nothing is said of two methods."""
HEAD = f"""\
# LoRA, AdaLoRA and EVA at equal parameters

Made by `python lab/adalora.py FOLDER --table` from the cells in its cells.jsonl. SmolLM2-135M-Instruct, all linear
layers, steps of 8 rows ({", ".join(f"{task} {steps}" for task, steps in STEPS.items())}), linear decay; loss in nats
per learned token on 150 rows never trained on (E2E: of meanings never trained on; superbowl: short rows, other answers
to questions that were trained on). A rate was swept for each line with seed 0, at least four, and the best one got
seeds 1 and 2; intervals are 95 % (Student, over {len(SEEDS)} seeds). What the seeds share, rows and model, is not in
them. Seed 0 chose the rate of each line, which flatters all alike; what AdaLoRA starts with was chosen, besides, from
the settings below on the rows that are measured here, which flatters AdaLoRA alone. A line whose parameters differ from
LoRA's by more than {EVEN:.0%} gets no verdict. AdaLoRA starts as in the paper in all cells whose start is
not `zero`; what each start forgets is in adalora_keeping.md.
"""


def write_table(lab: Lab, file: Path) -> None:
    parts = [
        HEAD,
        _settling(lab.done),
        _penalties(lab),
        "## Methods\n",
        _methods(lab),
        "## Every cell\n",
        _cells(lab.done),
    ]
    file.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _settling(known: dict[str, Any]) -> str:
    lines = [
        "## What AdaLoRA starts with\n",
        f"E2E, rank 8, seed 0. The methods below use {SETTLED}.\n",
        "| rate | strength_rate | start | orthogonality | initial | loss |",
        "|---|---|---|---|---|---|",
    ]
    for settings in SETTLING:
        cell = Cell("e2e", "adalora", 8, seed=0, **settings)
        if (row := _row(known, cell)) is not None:
            lines.append(
                f"| {cell.rate:g} | {cell.kappa:g} | {cell.start} | {cell.orthogonality:g} | {cell.initial:g} | "
                f"{row['loss']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def _penalties(lab: Lab) -> str:
    lines = [
        f"The penalty's weight at rate 4e-3, over {len(SEEDS)} seeds; how far the rows of Q end from orthonormal, "
        "|Q Q^T - 1| / sqrt(rank), where it was measured.\n",
        "| orthogonality | loss | from orthonormal |",
        "|---|---|---|",
    ]
    for weight in PENALTIES:
        try:
            losses = lab.penalty(weight)
        except TimeoutError:
            lines.append(f"| {weight:g} | not done yet | |")
            continue
        cells = [Cell("e2e", "adalora", 8, 4e-3, seed, **SETTLED | {"orthogonality": weight}) for seed in SEEDS]
        far = [row["gram"] for cell in cells if "gram" in (row := _row(lab.done, cell))]
        lines.append(f"| {weight:g} | {_with_interval(losses)} | {f'{statistics.mean(far):.4f}' if far else ''} |")
    return "\n".join(lines) + "\n"


def _row(known: dict[str, Any], cell: Cell) -> Any:
    return known.get(key_of(asdict(cell)))


def _methods(lab: Lab) -> str:
    lines = ["| task | rank | method | best rate | loss | parameters | against LoRA |", "|---|---|---|---|---|---|---|"]
    for task in TASKS:
        for rank in BUDGETS:
            base: tuple[list[float], int] | None = None
            for method in METHODS:
                try:
                    rate, losses = lab.seeds(task, method, rank)
                except TimeoutError:
                    lines.append(f"| {task} | {rank} | {method} | not done yet | | | |")
                    continue
                settings = SETTLED if method == "adalora" else {}
                parameters = _row(lab.done, Cell(task, method, rank, rate, 0, **settings))["parameters"]
                base = (losses, parameters) if method == "lora" else base
                against = "" if base is None or method == "lora" else _against(losses, parameters, *base)
                lines.append(
                    f"| {task} | {rank} | {method} | {rate:g} | {_with_interval(losses)} | {parameters:,} | {against} |"
                )
    return "\n".join(lines) + "\n"


def _with_interval(values: list[float]) -> str:
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def _against(losses: list[float], parameters: int, base: list[float], base_parameters: int) -> str:
    """Paired by seed: the same rows in the same order."""
    if abs(parameters / base_parameters - 1) > EVEN:
        return "other parameters"
    differences = [one - other for one, other in zip(losses, base, strict=True)]
    half = T_95[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    verdict = "cannot tell" if abs(mean) <= half else "better" if mean < 0 else "worse"
    return f"{mean:+.4f} ± {half:.4f}: {verdict}"


def _cells(known: dict[str, Any]) -> str:
    names = ("task", "method", "rank", "rate", "seed", "kappa", "start", "orthogonality", "initial")
    lines = [f"| {' | '.join(names)} | loss | before | parameters | seconds |", "|---" * (len(names) + 4) + "|"]
    for row in known.values():
        cell = row["cell"]
        said = " | ".join(f"{cell[name]:g}" if isinstance(cell[name], float) else str(cell[name]) for name in names)
        measured = f"{row['loss']:.4f} | {row['before']:.4f} | {row['parameters']:,} | {row['seconds']:.0f}"
        lines.append(f"| {said} | {measured} |")
    return "\n".join(lines) + "\n"
