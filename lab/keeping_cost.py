"""What an anchor to the base costs a step: the same steps with and without it, by turns, in one process.

    python lab/keeping_cost.py [--tasks e2e,dolly] [--steps 12] [--tokens 128]

SmolLM2-135M-Instruct in bfloat16, LoRA of rank 16 on all linear layers, batches of 8 rows as in lab/keeping.py. Steps
alternate: one without an anchor, one with. What the base says of a block counts where it is computed for the first
time, which is in each of so few steps. The table has medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from claims import tasks

from rankwise.base.loading import load
from rankwise.config.experiment import Experiment
from rankwise.config.forgetting import AnchorConfig
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.preparing import prepare
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory
from rankwise.training.backend import Fused
from rankwise.training.extras.anchor import Anchor, BaseOnText, anchor_text
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Presentation, Workload


def measured(task: str, steps: int, tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (files,) = tasks(Path(folder), [task])
        experiment = Experiment(
            model="smollm2-135m", run="bench", data={"path": str(files.trained), "rows": 400, "max_length": 512},
            training={"steps": steps, "batch_size": 8, "backend": "fused"},
        )  # fmt: skip
        model = load(experiment.base, silent)
        writing = TextWriting(model.tokenizer, model.template, model.source.name, None)
        prepared = prepare(experiment.data, writing, silent)
    rows = prepared.trained_rows
    config = experiment.training.resolved(len(rows), model.width, experiment.auto_rate)
    tuned = method_of(experiment.adapter).attach(model, Setup(config, steps, rows, load=load))
    work = Workload.of(tuned, objective_named("causal-lm"), config, prepared, Presentation(), silent)
    plain, held = Fused(work), Fused(work)
    asked = AnchorConfig(tokens=tokens)
    with tuned.base():
        text = anchor_text(asked, model, steps, silent)
    anchor = Anchor(BaseOnText(text, tuned, held, 10**9), asked.weight, 0, config.max_batch_tokens)
    batches = Batches.of(rows, config, plain.layout)
    runs = [Trainer(tuned, batches, config, plain).run(), Trainer(tuned, batches, config, held, anchor=anchor).run()]
    records = [[next(run) for run in runs] for _ in range(steps - 1)][1:]
    seconds = [[record.seconds for record in pair] for pair in zip(*records, strict=True)]
    return {
        "task": task, "tokens": statistics.mean(pair[0].tokens for pair in records), "anchor_tokens": tokens,
        "plain_seconds": seconds[0], "anchored_seconds": seconds[1],
        "ratio": statistics.median(after / before for before, after in zip(*seconds, strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="e2e,dolly")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    keep_memory()
    print("| rows | tokens of a step | without an anchor | with one | ratio (median of pairs) |")
    print("|---|---:|---:|---:|---:|")
    for task in options.tasks.split(","):
        row = measured(task, options.steps, options.tokens)
        before, after = (statistics.median(row[f"{name}_seconds"]) for name in ("plain", "anchored"))
        print(f"| {task} | {row['tokens']:.0f} | {before:.2f} s | {after:.2f} s | {row['ratio']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
