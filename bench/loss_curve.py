"""Whether the fast form and bfloat16 learn as the plain form in float32 does: whole trainings, loss by loss.

    python bench/loss_curve.py [--json] [--rows 200] [--steps N] [--forms ...] [--seeds 0,1,2] [--cells FILE] [--out T]

`rankwise.train` itself, LoRA with its own settings (r 16, all linear layers, automatic learning rate), on rows drawn
from Dolly ($RANKWISE_DATA/dolly) that have at most 512 tokens, and as measured rows 64 others; four rows a step, two
passes. Forms: `reference` (plain, float32), `fast` and `plain` (both bfloat16). A seed sets the order of rows and where
A begins; the rows are the same for all. Each finished training is a line of --cells, and one that is there already,
with the same settings, is not run again: begin another file
when the kernels have changed.

Told for each form and seed: the gap of every step's loss to the reference of the same seed, mean and largest. For each
form: the loss on the measured rows after training, its mean and deviation over seeds; and by how much it is above the
reference's of the same seed, with the standard error of that over seeds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stacks import CASES, REFERENCE, USUAL
from telling import parser_of, tell

import rankwise
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.data import DataConfig, ValidationDataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.rows.sources import open_source
from rankwise.rows.text.encode import Encoder
from rankwise.runs.records import Event, StepRecord
from rankwise.system.memory import keep_memory

FORMS = {REFERENCE: ("float32", True), "fast": ("bfloat16", False), "plain": ("bfloat16", True)}
"""By number format, and whether the plain form is asked for."""
BATCH, MEASURED, PASSES, LONGEST = 4, 64, 2, CASES[USUAL].longest
CELLS = Path(__file__).parent / "results" / "loss-curve" / "cells.jsonl"
Cell = dict[str, Any]


def drawn(model: LoadedModel, count: int) -> tuple[list[str], list[str]]:
    """Lines of the file that fit, to train on and to measure with; the measured are the same however many train."""
    file = Path(os.environ["RANKWISE_DATA"]) / "dolly" / "train.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    spec = DataConfig(path=str(file), max_length=LONGEST)
    examples = [one for chunk in open_source(spec, spec.all_sources[0]).chunks() for row in chunk for one in row]
    assert len(examples) == len(lines), "each line is a row"
    outcomes = Encoder(model.template, model.tokenizer, spec, LONGEST).encode(examples)
    fitting = [line for line, outcome in zip(lines, outcomes, strict=True) if outcome.sequences]
    if len(fitting) < MEASURED + count:
        raise SystemExit(f"{len(fitting)} rows fit, and {MEASURED + count} are wanted")
    order = np.random.default_rng(0).permutation(len(fitting))
    chosen = [fitting[place] for place in order[: MEASURED + count]]
    return chosen[MEASURED:], chosen[:MEASURED]


def write_rows(folder: Path, count: int) -> None:
    trained, measured = drawn(load(ModelConfig(name="smollm2-135m")), count)
    for name, lines in (("train", trained), ("measure", measured)):
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def experiment_of(form: str, seed: int, steps: int) -> Experiment:
    dtype, plain = FORMS[form]
    return Experiment(
        model=ModelConfig(name="smollm2-135m", dtype=dtype),
        data=DataConfig(path="train.jsonl", validation=ValidationDataConfig(path="measure.jsonl"), max_length=LONGEST),
        run=f"{form}-{seed}",
        training=TrainingConfig(steps=steps, batch_size=BATCH, backend="eager" if plain else "auto", seed=seed),
    )


def trained(form: str, seed: int, rows: int, steps: int) -> Cell:
    """In a folder that holds the rows, and is the current one."""
    seen = list[StepRecord]()

    def hear(event: Event) -> None:
        if isinstance(event, StepRecord):
            seen.append(event)

    done = rankwise.train(experiment_of(form, seed, steps), callback=hear, restart=True)
    manifest, results = done.manifest, done.manifest.results
    assert (manifest.backend != "eager") == (form == "fast"), "what is told is what was computed"
    assert results is not None and manifest.data.training_sequences == rows, "all rows were taken"
    return {
        **key_of(form, seed, rows, steps), "learning_rate": manifest.learning_rate,
        "losses": [record.loss for record in seen],
        "loss_tokens": [record.loss_tokens for record in seen],
        "held_out_before": results.validation_loss_before, "held_out_after": results.validation_loss_after,
        "seconds": results.train_seconds, "tokens_per_second": results.tokens_per_second,
    }  # fmt: skip


def key_of(form: str, seed: int, rows: int, steps: int) -> Cell:
    """What makes two cells the same."""
    return {
        "form": form,
        "seed": seed,
        "rows": rows,
        "steps": steps,
        "batch_size": BATCH,
        "longest": LONGEST,
    }


def is_of(cell: Cell, key: Cell) -> bool:
    return all(cell.get(name) == value for name, value in key.items())


def read_cells(file: Path) -> list[Cell]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def fill(file: Path, keys: Sequence[Cell]) -> list[Cell]:
    """The cells of all keys, those trained that are not there yet."""
    missing = [key for key in keys if not any(is_of(cell, key) for cell in read_cells(file))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file = file.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if missing:
            write_rows(Path(), missing[0]["rows"])
        for key in missing:
            cell = trained(key["form"], key["seed"], key["rows"], key["steps"])
            with file.open("a", encoding="utf-8") as cells:
                cells.write(json.dumps(cell) + "\n")
            print(f"{key['form']} with seed {key['seed']} is done: {cell['seconds']:.0f} s", file=sys.stderr)
    cells = read_cells(file)
    return [next(cell for cell in cells if is_of(cell, key)) for key in keys]


def gaps(cells: list[Cell]) -> list[dict[str, Any]]:
    """Of each cell to the reference of its seed, where there is one."""
    references = {cell["seed"]: cell for cell in cells if cell["form"] == REFERENCE}
    rows = list[dict[str, Any]]()
    for cell in cells:
        reference = references.get(cell["seed"])
        if reference is None or cell is reference:
            continue
        assert cell["loss_tokens"] == reference["loss_tokens"], "both had the same rows"
        each = [abs(one - other) for one, other in zip(cell["losses"], reference["losses"], strict=True)]
        rows.append(
            {
                "form": cell["form"], "seed": cell["seed"], "mean_gap": statistics.mean(each), "largest_gap": max(each),
                "first_gap": each[0], "reference_mean_loss": statistics.mean(reference["losses"]),
                "held_out_above": cell["held_out_after"] - reference["held_out_after"],
            }
        )  # fmt: skip
    return rows


def deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def held_out(cells: list[Cell], apart: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    for form in dict.fromkeys(cell["form"] for cell in cells):
        own = [cell for cell in cells if cell["form"] == form]
        after = [cell["held_out_after"] for cell in own]
        above = [row["held_out_above"] for row in apart if row["form"] == form]
        noise = deviation(above)
        rows.append(
            {
                "form": form, "seeds": [cell["seed"] for cell in own],
                "before": statistics.mean(cell["held_out_before"] for cell in own),
                "after": statistics.mean(after), "after_deviation": deviation(after),
                "above_reference": statistics.mean(above) if above else None,
                "standard_error": None if noise is None else noise / math.sqrt(len(above)),
                "seconds": statistics.median(cell["seconds"] for cell in own),
            }
        )  # fmt: skip
    return rows


def show(found: dict[str, Any]) -> None:
    for row in found["gaps"]:
        print(
            f"{row['form']:<10} seed {row['seed']}: gap of a step's loss {row['mean_gap']:.4f} on average, at most "
            f"{row['largest_gap']:.4f}, at the first step {row['first_gap']:.4f}"
        )
    for row in found["held_out"]:
        noise, error = (float("nan") if row[key] is None else row[key] for key in ("after_deviation", "standard_error"))
        line = f"{row['form']:<10} held-out loss {row['before']:.4f} to {row['after']:.4f} (deviation {noise:.4f})"
        if row["above_reference"] is not None:
            line += f", {row['above_reference']:+.4f} of the reference (standard error {error:.4f})"
        print(f"{line}, {row['seconds']:.0f} s")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, help="instead of two passes")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cells", type=Path, default=CELLS)
    asked = parser.parse_args()
    keep_memory()
    steps = asked.steps or math.ceil(PASSES * asked.rows / BATCH)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    keys = [key_of(form, seed, asked.rows, steps) for seed in seeds for form in asked.forms.split(",")]
    cells = fill(asked.cells, keys)
    apart = gaps(cells)
    found = {"gaps": apart, "held_out": held_out(cells, apart), "rows": asked.rows, "steps": steps}
    tell(asked, found, show)


if __name__ == "__main__":
    main()
