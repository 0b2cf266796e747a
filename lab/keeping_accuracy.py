"""Does a model that learned a task still answer other questions as it did? Accuracy before and after, on three sets.

    python lab/keeping_accuracy.py FOLDER [--tasks e2e,dolly] [--ways plain,anchor,full]    run what is not done yet
    python lab/keeping_accuracy.py FOLDER --table                                          the table of what is done

The trainings are those of lab/keeping.py with seed 0, as runs of their own. ARC-Easy and HellaSwag are questions with
several answers, of which the likeliest counts; LAMBADA is the loss of a passage's last word, in nats. All are the same
200 rows (HellaSwag and LAMBADA: 150) before and after, in float32, so the difference has a paired interval. Finished
cells lie in FOLDER/accuracy.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claims import data
from keeping import experiment_of
from stored_cells import command, fresh

from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

SETS = {
    "arc_easy": ("retention/arc_easy_test.jsonl", 200),
    "hellaswag": ("retention/hellaswag_val.jsonl", 150),
    "lambada": ("retention/lambada_openai_test.jsonl", 150),
}
Cell = tuple[str, str]


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    task, way = cell
    began, name = time.perf_counter(), fresh(f"{task}-{way.replace(':', '-')}")
    train(experiment_of(folder, (task, way, 0), name), restart=True)
    differences = {}
    for benchmark, (file, rows) in SETS.items():
        result = evaluate(name, benchmark, data=str(data(file)), rows=rows, forgetting=False, callback=silent)
        differences[benchmark] = {name: one.model_dump() for name, one in result.differences.items()}
    return {"kind": "cell", "cell": list(cell), "differences": differences, "seconds": time.perf_counter() - began}


def table(folder: Path, done: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    yield "| rows | way | set | measure | base | tuned | difference (95 %) |"
    yield "|---|---|---|---|---:|---:|---|"
    for (task, way), row in done.items():
        for benchmark, measures in row["differences"].items():
            for measure, one in measures.items():
                yield (
                    f"| {task} | {way} | {benchmark} | {measure} | {one['a']:.3f} | {one['b']:.3f} | "
                    f"{one['difference']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f}) |"
                )


def main() -> None:
    command(
        __doc__, "accuracy.jsonl", {"tasks": "e2e,dolly", "ways": "plain,anchor,full"},
        lambda _, tasks, ways: [(task, way) for way in ways for task in tasks], run,
        lambda row: f"{row['seconds']:.0f} s", table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
