"""The table of lab/adalora.md, made from finished cells and nothing else."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from adalora import BUDGETS, KAPPAS, METHODS, SEEDS, STARTS, STEPS, T_95, TASKS, Cell, Lab, key_of

HEAD = f"""\
# LoRA, AdaLoRA and EVA at equal parameters

Made by `python lab/adalora.py FOLDER --table` from the cells in its cells.jsonl. SmolLM2-135M-Instruct, all linear
layers, {STEPS} steps of 8 rows, linear decay; loss in nats per learned token on 150 rows never trained on (E2E: of
meanings never trained on; GSM8K: short rows). A rate was swept for each line with seed 0 and the best one got seeds 1
and 2; intervals are 95 % (Student, over {len(SEEDS)} seeds). What the seeds share, rows and model, is not in them.
"""


def write_table(lab: Lab, file: Path) -> None:
    known = lab.done
    parts = [HEAD, _settling(known), "## Methods\n", _methods(lab), "## Every cell\n", _cells(known)]
    file.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _settling(known: dict[str, Any]) -> str:
    lines = ["## What AdaLoRA starts with\n", "E2E, rank 8, rate 1e-3, seed 0.\n", "| strength_rate | start | loss |",
             "|---|---|---|"]  # fmt: skip
    for kappa in KAPPAS:
        for start in STARTS:
            row = _row(known, Cell("e2e", "adalora", 8, 1e-3, 0, kappa, start))
            if row is not None:
                lines.append(f"| {kappa:g} | {start} | {row['loss']:.4f} |")
    return "\n".join(lines) + "\n"


def _row(known: dict[str, Any], cell: Cell) -> Any:
    from dataclasses import asdict

    return known.get(key_of(asdict(cell)))


def _methods(lab: Lab) -> str:
    lines = ["| task | rank | method | best rate | loss | parameters | against LoRA |", "|---|---|---|---|---|---|---|"]
    try:
        kappa, start = lab.settled()
    except TimeoutError:
        return "not done yet\n"
    for task in TASKS:
        for rank in BUDGETS:
            base: list[float] | None = None
            for method in METHODS:
                try:
                    rate, losses = lab.seeds(task, method, rank, kappa, start)
                except TimeoutError:
                    lines.append(f"| {task} | {rank} | {method} | not done yet | | | |")
                    continue
                base = losses if method == "lora" else base
                own = {"kappa": kappa, "start": start} if method == "adalora" else {}
                parameters = _row(lab.done, Cell(task, method, rank, rate, 0, **own))["parameters"]
                against = _against(losses, base) if base is not None and method != "lora" else ""
                lines.append(
                    f"| {task} | {rank} | {method} | {rate:g} | {_with_interval(losses)} | {parameters:,} | {against} |"
                )
    return "\n".join(lines) + "\n"


def _with_interval(values: list[float]) -> str:
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def _against(losses: list[float], base: list[float]) -> str:
    """Paired by seed: the same rows in the same order."""
    differences = [one - other for one, other in zip(losses, base, strict=True)]
    half = T_95[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    verdict = "cannot tell" if abs(mean) <= half else "better" if mean < 0 else "worse"
    return f"{mean:+.4f} ± {half:.4f}: {verdict}"


def _cells(known: dict[str, Any]) -> str:
    lines = ["| task | method | rank | rate | seed | strength_rate | start | loss | before | parameters | seconds |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in known.values():
        cell = row["cell"]
        lines.append(
            f"| {cell['task']} | {cell['method']} | {cell['rank']} | {cell['rate']:g} | {cell['seed']} | "
            f"{cell['kappa']:g} | {cell['start']} | {row['loss']:.4f} | {row['before']:.4f} | {row['parameters']:,} | "
            f"{row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"
