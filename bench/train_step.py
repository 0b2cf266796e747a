"""Tokens per second of whole optimizer steps: rankwise, its plain form, loops over peft, TRL and Unsloth, same rows.

    python bench/train_step.py [--json] [--rows 64] [--rounds 2] [--stacks peft-bf16,...] [--case usual] [--out TITLE]
                               [--unsloth-python .venv-engines-unsloth/bin/python]
    python bench/train_step.py --tell bench/results/FILE.json

Each stack (stacks.py) is a process of its own, so that its memory is its own. Every other stack makes its steps in
turns with rankwise, one at a time, in the order ABBA, so that a machine whose speed drifts does so for both. Memory is
kept (system/memory.py) by ours and by those at their best. TRL counts accuracy and entropy too, as it always does. A
process's first step is not counted. `--case` names what rankwise should be slower at: one row a step, rows of 2,048
tokens, rank 256, dropout.

Threads of all stacks wait for each other as rankwise's do (system/processor.py), so that other work on the machine
costs each of them its share and no more. `unsloth-cpu` needs an environment of its own
(make .venv-engines-unsloth/.ready). RANKWISE_BENCH_MODEL names another model than the starter of 135M.

Beside what was reached stand two limits: the operations that a step needs (limits.py) at the rate of this machine's
best bfloat16 product, measured before and after, and at that of the model's own products.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from limits import MODEL, gemm_rate, operations, shape_rate
from stacks import CASES, OURS, REFERENCE, STACKS, USUAL, Case, peft_stack, rankwise_stack, sequences
from telling import parser_of, tell
from trainer_stacks import trl_train, unsloth_settings, unsloth_train

from rankwise.system.processor import wait_briefly

TOKENS = {name: 2048 if case.joined else 192 * case.batch for name, case in CASES.items()}
"""About what a product has."""


class Served:
    """Steps that are asked for by their number on stdin, one line of JSON on stdout for each. What a step has in tokens
    is known to who asks."""

    def __init__(self) -> None:
        self._began = 0.0

    def begin(self) -> None:
        if self._began == 0.0:
            print("ready", flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._began = time.perf_counter()

    def end(self, loss: float, **more: Any) -> None:
        from rankwise.runs.manifest import peak_rss

        row = {"loss": loss, "seconds": time.perf_counter() - self._began, "rss": peak_rss(), **more}
        print(json.dumps(row), flush=True)


def serve(name: str, count: int, steps: int, case: Case) -> None:
    turns = Served()
    if name.startswith("trl"):
        return trl_train(name, count, steps, turns, case)
    if name.startswith("unsloth"):
        return unsloth_train(name, count, steps, turns, case)
    step = (peft_stack if name.startswith("peft") else rankwise_stack)(name, count, case)
    for number in range(steps):
        turns.begin()
        turns.end(step(number))


class Stack:
    """A process that makes its steps when it is asked to. `script` answers to --serve, and is run by `python`."""

    def __init__(
        self, name: str, count: int, steps: int, script: str = __file__, case: str = USUAL,
        python: str = sys.executable,
    ) -> None:  # fmt: skip
        command = [python, script, "--serve", name, "--rows", str(count), "--steps", str(steps), "--case", case]
        wait_briefly()
        self.name, self.rows = name, list[dict[str, Any]]()
        began = time.perf_counter()
        own = unsloth_settings() if name.startswith("unsloth") else {}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | own
        )
        self._answer("ready")
        self.seconds_to_begin = time.perf_counter() - began

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.rows.append(json.loads(self._answer('{"loss"')))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, beginning: str) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith(beginning):
                return line
        raise SystemExit(f"{self.name} ended: {self._process.wait()}")


def in_turns(
    names: list[str], count: int, steps: int, script: str = __file__, case: str = USUAL,
    unsloth: str = sys.executable,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    pythons = [unsloth if name.startswith("unsloth") else sys.executable for name in names]
    stacks = [Stack(name, count, steps, script, case, python) for name, python in zip(names, pythons, strict=True)]
    try:
        for number in range(steps):
            for stack in stacks if number % 2 == 0 else reversed(stacks):
                stack.step()
        for stack in stacks:
            stack.rows[0]["seconds_to_begin"] = stack.seconds_to_begin
    finally:
        for stack in stacks:
            stack.end()
    return {stack.name: stack.rows for stack in stacks}


def measured(names: list[str], count: int, rounds: int, case: str, unsloth: str) -> dict[str, Any]:
    steps, rates, turns = max(2, count // CASES[case].batch) * rounds, [gemm_rate()], list[dict[str, Any]]()
    shaped = [shape_rate(TOKENS[case], CASES[case].rank)]
    for name in names:
        turns.append(in_turns([OURS, name], count, steps, case=case, unsloth=unsloth))
        rates.append(gemm_rate())
        shaped.append(shape_rate(TOKENS[case], CASES[case].rank))
        print(f"{name} is done", file=sys.stderr)
    reference = in_turns([REFERENCE], count, steps, case=case)[REFERENCE]
    return {
        "case": case,
        "rows_measured": count,
        "gemm": rates,
        "shaped": shaped,
        "turns": turns,
        "reference": reference,
    }


def told(found: dict[str, Any], count: int, case: Case) -> list[dict[str, Any]]:
    from rankwise.base.loading import load
    from rankwise.config.models import ModelConfig
    from rankwise.rows.encoded.batches import Batches, input_length
    from rankwise.runs.records import silent

    batches = Batches(sequences(load(ModelConfig(name=MODEL), silent), count, case), case.batch, 2048, 0)
    rate, shaped = statistics.median(found["gemm"]), statistics.median(found["shaped"])
    reference = [row["loss"] for row in found["reference"]]
    steps_rows = [batches.rows_of(number) for number in range(len(reference))]
    lengths = [[input_length(row) for row in rows] for rows in steps_rows]
    supervised = [sum(sum(row.loss_mask[1:]) for row in rows) for rows in steps_rows]

    def row_of(name: str, own: list[list[dict[str, Any]]], turns: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Over all turns that the stack had, each without its first step."""
        counted = [(at, row) for steps in turns for at, row in list(enumerate(steps))[1:]]
        pairs = [pair for ours, steps in zip(own, turns, strict=True) for pair in zip(ours[1:], steps[1:], strict=True)]
        speeds = [sum(lengths[at]) / row["seconds"] for at, row in counted]
        reached = statistics.median(
            operations(lengths[at], supervised[at], case.rank) / row["seconds"] for at, row in counted
        )
        epochs = [steps[0]["seconds_to_begin"] + sum(row["seconds"] for row in steps[:in_epoch]) for steps in turns]
        return {
            "stack": name, "tokens_per_second": statistics.median(speeds), "slowest": min(speeds),
            "fastest": max(speeds),
            "supervised_per_second": statistics.median(supervised[at] / row["seconds"] for at, row in counted),
            "seconds_per_step": statistics.median(row["seconds"] for _, row in counted),
            "peak_rss_bytes": max(row["rss"] for steps in turns for row in steps), "operations_per_second": reached,
            "percent_of_limit": 100 * reached / rate, "percent_of_shape_limit": 100 * reached / shaped,
            "seconds_to_first_epoch": statistics.median(epochs),
            "loss_gap": None if case.dropout else statistics.mean(
                abs(row["loss"] - wanted) for steps in turns for row, wanted in zip(steps, reference, strict=True)
            ),
            "rankwise_times_faster": statistics.median(
                row["seconds"] / one["seconds"] for one, row in pairs
            ),
            "steps": len(counted),
        }  # fmt: skip

    in_epoch = max(1, count // case.batch)
    ours = [turn[OURS] for turn in found["turns"]]
    others = [(name, turn) for turn in found["turns"] for name in turn if name != OURS]
    return [row_of(OURS, ours, ours)] + [row_of(name, [turn[OURS]], [turn[name]]) for name, turn in others]


def show(rows: list[dict[str, Any]]) -> None:
    heads = ("tokens/s", "min", "max", "s/step", "peak GB", "% limit", "loss gap", "ours is")
    print(f"{'stack':<16}" + "".join(f"{head:>10}" for head in heads))
    for row in rows:
        print(
            f"{row['stack']:<16}{row['tokens_per_second']:>10,.0f}{row['slowest']:>10,.0f}{row['fastest']:>10,.0f}"
            f"{row['seconds_per_step']:>10.2f}{row['peak_rss_bytes'] / 1e9:>10.2f}{row['percent_of_limit']:>10.0f}"
            f"{row['loss_gap'] or 0:>10.4f}{row['rankwise_times_faster']:>9.2f}x"
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stacks", default=",".join(STACKS))
    parser.add_argument("--case", default=USUAL, choices=CASES)
    parser.add_argument("--unsloth-python", default=sys.executable, help="of the environment that has Unsloth")
    parser.add_argument("--tell", type=Path, help="results that were kept, instead of measuring")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve(asked.serve, asked.rows, asked.steps, CASES[asked.case])
    if asked.tell:
        found = json.loads(asked.tell.read_text())
    else:
        found = measured(asked.stacks.split(","), asked.rows, asked.rounds, asked.case, asked.unsloth_python)
    rows = told(found, found.get("rows_measured", asked.rows), CASES[found["case"]])
    tell(asked, rows, show, {**found, "rows": rows})


if __name__ == "__main__":
    main()
