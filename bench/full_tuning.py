"""LoRA against full fine-tuning in the same loop, on the same rows: time, memory, and what learning itself holds.

    python bench/full_tuning.py [--json] [--rows 64] [--rounds 1] [--stacks rankwise,...] [--out bench/results/TITLE]

All make rankwise's own optimizer steps (clipping, fused AdamW) over the rows that train_step.py has, on SmolLM2-135M:

    rankwise         LoRA, r 16 on all linear layers, base in bfloat16, the fast form
    rankwise-plain   the same in the plain form
    full-bf16        every parameter learns, in bfloat16, with moments in bfloat16; the plain form
    full-fp32        every parameter learns, in float32, as it is usually done; the plain form

Each is a process of its own, and all make their steps in turns, forth and back (ABBA); the first step is not counted.
Memory is the most that was held from before the first step on, in all and over what was held then. What learning holds
is counted from its tensors after the last step: the parameters that learn (none has a copy in another number format),
their gradients, and the optimizer's moments. Ratios are medians over steps, each against the step of the same rows.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from memory import forget_peak, resident
from stacks import CASES, OURS, USUAL, rankwise_trainer, sequences, trainer_of
from telling import parser_of, tell
from torch import Tensor
from train_step import Served, in_turns

from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.methods.full import FullFineTuning
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory
from rankwise.training.state import TrainState

CASE, PLAIN = CASES[USUAL], "rankwise-plain"
FULL = {"full-bf16": "bfloat16", "full-fp32": "float32"}
FULL_RATE = 1e-5


def full_trainer(name: str, count: int) -> Any:
    keep_memory()
    model = load(ModelConfig(name="smollm2-135m", dtype=FULL[name]), silent)
    trainable = FullFineTuning(model.module, dict)  # nobody asks for the base
    return trainer_of(model.module, trainable, CASE, sequences(model, count, CASE), "eager", FULL_RATE)


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held_to_learn(state: TrainState) -> dict[str, Any]:
    """After a step, when the optimizer has made its moments."""
    parameters = state.parameters
    moments = [state.optimizer.state[one][kind] for one in parameters for kind in ("exp_avg", "exp_avg_sq")]
    parts = {
        "weights": bytes_of([one.detach() for one in parameters]),
        "gradients": bytes_of([one.grad for one in parameters if one.grad is not None]),
        "moments": bytes_of(moments),
    }
    learned = sum(one.numel() for one in parameters)
    total = sum(parts.values())
    return {"learned_parameters": learned, "parts": parts, "bytes_of_training": total, "per_parameter": total / learned}


def serve(name: str, count: int, steps: int) -> None:
    trainer = full_trainer(name, count) if name in FULL else rankwise_trainer(name, count, CASE)
    state, records = trainer.state, trainer.run()
    turns = Served()
    for parameter in state.parameters:
        parameter.detach().sum()  # weights that a file maps are in memory only when they were read
    forget_peak()
    before = resident()
    for _ in range(steps):
        turns.begin()
        record = next(records)
        turns.end(record.loss, before=before, held=held_to_learn(state))


def row_of(name: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The first step of each is left out of what is told of time."""
    steps = found[name]
    seconds = [row["seconds"] for row in steps[1:]]
    most, before = max(row["rss"] for row in steps), steps[0]["before"]
    against = {
        f"times_{other}": {
            "seconds": statistics.median(
                own / row["seconds"] for own, row in zip(seconds, found[other][1:], strict=True)
            ),
            "peak_rss": most / max(row["rss"] for row in found[other]),
            "bytes_of_training": steps[-1]["held"]["bytes_of_training"] / found[other][-1]["held"]["bytes_of_training"],
        }
        for other in (OURS, PLAIN)
        if other in found
    }
    return {
        "stack": name, "seconds_per_step": statistics.median(seconds), "fastest": min(seconds),
        "slowest": max(seconds), "rss_before_bytes": before, "peak_rss_bytes": most, "grown_bytes": most - before,
        **steps[-1]["held"], **against, "losses": [row["loss"] for row in steps], "steps": len(seconds),
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    heads = ("s/step", "x fast", "x plain", "before GB", "peak GB", "peak x fast", "learning MB", "B/learned")
    print(f"{'stack':<16}" + "".join(f"{head:>12}" for head in heads))
    for row in rows:
        fast, plain = (row.get(f"times_{other}", {}) for other in (OURS, PLAIN))
        values = (
            row["seconds_per_step"], fast.get("seconds"), plain.get("seconds"), row["rss_before_bytes"] / 1e9,
            row["peak_rss_bytes"] / 1e9, fast.get("peak_rss"), row["bytes_of_training"] / 1e6, row["per_parameter"],
        )  # fmt: skip
        told = "".join(f"{'-':>12}" if value is None else f"{value:>12.2f}" for value in values)
        print(f"{row['stack']:<16}{told}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stacks", default=",".join((OURS, PLAIN, *FULL)))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve(asked.serve, asked.rows, asked.steps)
    steps = max(2, asked.rows // CASE.batch) * asked.rounds
    found = in_turns(asked.stacks.split(","), asked.rows, steps, __file__)
    rows = [row_of(name, found) for name in found]
    tell(asked, rows, show, {"rows": rows, "turns": found})


if __name__ == "__main__":
    main()
