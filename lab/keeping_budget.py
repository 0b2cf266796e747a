"""Does `--forget-at-most` keep its budget on text that the run never used, and what does that cost?

    python lab/keeping_budget.py FOLDER [--tasks e2e,superbowl,dolly] [--budgets 0.01,0.03,0.1] run what is missing
    python lab/keeping_budget.py FOLDER --table                                               the table of what is done

The trainings are those of lab/keeping.py with seed 0 and a budget, as runs of their own. What they forgot is measured
on six blocks of 512 tokens of WikiText-2, as there. Beside each stands the best of the fixed weights in
FOLDER/keeping.jsonl (anchor-0.3, anchor, anchor-3, at the strengths measured there) whose result keeps the budget.
Finished cells lie in FOLDER/budget.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claims import data
from keeping import BLOCKS, experiment_of, loss_of
from stored_cells import command, done_in, fresh

from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.config.forgetting import AnchorConfig
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

WEIGHTS = ("plain", "anchor-0.3", "anchor", "anchor-3")
Cell = tuple[str, float]


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    task, budget = cell
    began, name = time.perf_counter(), fresh(f"{task}-{budget:g}")
    plain = experiment_of(folder, (task, "plain", 0), name)
    training = plain.training.model_copy(update={"anchor": AnchorConfig(forget_at_most=budget)})
    results = train(plain.model_copy(update={"training": training}), restart=True).manifest.results
    assert results is not None and results.budget is not None, "the run is finished, and has a budget"
    text = str(data("retention/wikitext-2/valid.txt"))
    forgotten = evaluate(name, text=text, blocks=BLOCKS, dtype="bfloat16", callback=silent).forgetting
    assert forgotten is not None, "a run is compared with its base"
    return {
        "kind": "cell", "cell": list(cell), "kept": results.budget.model_dump(), "loss": results.validation_loss_after,
        "wikitext": forgotten.kl, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def table(folder: Path, done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    fixed = done_in(folder / "keeping.jsonl")
    yield "| rows | budget | on WikiText-2 | of the budget | strength | loss | best fixed weight that keeps it | loss |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|"
    for (task, budget), row in sorted(done.items()):
        keeping = [
            (loss_of(other, strength), f"{way}, strength {strength}")
            for way in WEIGHTS if (other := fixed.get((task, way, 0))) is not None
            for strength, measured in other["measured"].items() if measured["kl"]["wikitext"] <= budget
        ]  # fmt: skip
        loss, way = min(keeping, default=(float("nan"), "none"))
        yield (
            f"| {task} | {budget:g} | {row['wikitext']:.4f} | {row['wikitext'] / budget:.2f} | "
            f"{row['kept']['strength']:.3f} | {row['loss']:.4f} | {way} | {loss:.4f} |"
        )


def main() -> None:
    command(
        __doc__, "budget.jsonl", {"tasks": "e2e,superbowl,dolly", "budgets": "0.01,0.03,0.1"},
        lambda _, tasks, budgets: [(task, float(budget)) for task in tasks for budget in budgets], run,
        lambda row: f"{row['loss']:.4f}, {row['wikitext']:.4f} on WikiText-2, {row['seconds']:.0f} s", table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
