"""How the time and memory of an optimizer step grow with its tokens, in rankwise's fast form.

    python bench/scaling.py [--json] [--sizes 512,1024,...] [--rows 2,4,8,16] [--rounds 5] [--out bench/results/TITLE]

SmolLM2-135M in bfloat16, r 16 and alpha 32 on all linear layers. A step has random sequences of 256 tokens, the second
half of each supervised: all in one micro-batch, and where they are more than 2,048 tokens in micro-batches of that
many too. Further steps have 2, 4, 8 and 16 sequences of 512 tokens. Time: all sizes in turns in one process, forth and
back (ABBA), after one round that is not counted; the median. Memory: a process of its own for each size, all in one
micro-batch, what it held at most over what it held before its first step.

Lines are laid through both: seconds = a + b * tokens, bytes = a + b * tokens, and how far from its line the farthest
point lies, as a share of the point. Beside them what a token keeps for the backward pass: by arithmetic from the
model's shape, and as counted: the bytes of all storages that one forward pass made and autograd holds after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from limits import starter_shape
from memory import forget_peak, resident
from saved import arithmetic
from stacks import CASES, USUAL, StepBatches, lora_trainer
from telling import parser_of, tell

from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.forward.activation_memory import saved_bytes
from rankwise.forward.fused import FusedLoss
from rankwise.forward.reference import random_documents
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.encoded.packing import flat
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.manifest import peak_rss
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

LENGTH, LONGER, MICRO, WHOLE = 256, 512, 2048, 10**9
Case = tuple[int, int, int]
"""Documents, the tokens of each, and the tokens of a micro-batch."""

CASE = CASES[USUAL]


def half_learned(vocabulary: int, count: int, length: int) -> list[Tokens]:
    """Random sequences that ask `length` questions each, of which the second half are supervised."""
    sequences = random_documents(vocabulary, [length] * count, torch.Generator().manual_seed(0))
    first = length + 1 - length // 2
    return [replace(sequence, loss_mask=(False,) * first + (True,) * (length // 2)) for sequence in sequences]


def starter() -> Any:
    return load(ModelConfig(name="smollm2-135m", dtype="bfloat16"), silent).module


def micro_batches(case: Case, vocabulary: int) -> list[Batch]:
    count, length, micro = case
    return flat(half_learned(vocabulary, count, length), micro)


def cases_of(sizes: Sequence[int], rows: Sequence[int]) -> list[Case]:
    whole = [(size // LENGTH, LENGTH, WHOLE) for size in sizes]
    parted = [(size // LENGTH, LENGTH, MICRO) for size in sizes if size > MICRO]
    return whole + parted + [(count, LONGER, WHOLE) for count in rows]


def timed(module: Any, cases: list[Case], rounds: int, vocabulary: int) -> list[dict[str, Any]]:
    parts = {case: micro_batches(case, vocabulary) for case in cases}
    order = [case for number in range(rounds + 1) for case in (cases if number % 2 else cases[::-1])]
    records = lora_trainer(module, CASE, StepBatches(lambda step: parts[order[step]])).run()
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases if number % 2 else reversed(cases):
            record = next(records)
            if number:
                seconds[case].append(record.seconds)
        print(f"round {number} is done", file=sys.stderr)
    return [row_of(case, seconds[case], len(parts[case])) for case in cases]


def row_of(case: Case, seconds: list[float], parts: int) -> dict[str, Any]:
    count, length, micro = case
    median = statistics.median(seconds)
    return {
        "tokens": count * length, "sequences": count, "length": length,
        "max_batch_tokens": None if micro == WHOLE else micro, "micro_batches": parts,
        "seconds": median, "tokens_per_second": count * length / median, "all": seconds,
    }  # fmt: skip


def grown(size: int) -> dict[str, int]:
    """In this process, which has done nothing else: by how much two steps grow it."""
    module = starter()
    (batch,) = micro_batches((size // LENGTH, LENGTH, WHOLE), module.config.vocab_size)
    records = lora_trainer(module, CASE, StepBatches(lambda step: [batch])).run()
    keep_memory()
    forget_peak()
    before = resident()
    for _ in range(2):
        next(records)
    return {"tokens": size, "before_bytes": before, "grown_bytes": peak_rss() - before}


def grown_apart(size: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--grown", str(size)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def kept_by_size(module: Any, sizes: list[int]) -> list[dict[str, int]]:
    loss_of, vocabulary = FusedLoss(module), module.config.vocab_size
    batches = [micro_batches((size // LENGTH, LENGTH, WHOLE), vocabulary)[0] for size in sizes]
    return [
        {"tokens": size, "saved_bytes": saved_bytes(loss_of, batch, module)}
        for size, batch in zip(sizes, batches, strict=True)
    ]


def line(tokens: Sequence[int], values: Sequence[float]) -> dict[str, float] | None:
    """Through at least two points, by least squares of relative deviations."""
    if len(tokens) < 2:
        return None
    slope, constant = np.polyfit(tokens, values, 1, w=1 / np.asarray(values))
    farthest = np.abs((constant + slope * np.asarray(tokens)) / np.asarray(values) - 1).max()
    return {"constant": float(constant), "per_token": float(slope), "largest_relative_deviation": float(farthest)}


def lines(rows: list[dict[str, Any]], memory: list[dict[str, int]], kept: list[dict[str, int]]) -> dict[str, Any]:
    whole = [row for row in rows if row["length"] == LENGTH and row["max_batch_tokens"] is None]
    small = [row for row in whole if row["tokens"] <= MICRO]
    chosen: dict[str, tuple[list[Any], str]] = {
        "seconds_in_one": (whole, "seconds"),
        "seconds_in_parts": (small + [row for row in rows if row["max_batch_tokens"] == MICRO], "seconds"),
        "seconds_of_longer": ([row for row in rows if row["length"] == LONGER], "seconds"),
        "grown_bytes": (memory, "grown_bytes"),
        "saved_bytes": (kept, "saved_bytes"),
    }
    return {
        name: line([row["tokens"] for row in found], [row[key] for row in found])
        for name, (found, key) in chosen.items()
    }


def measured(sizes: list[int], rows: list[int], rounds: int) -> dict[str, Any]:
    memory = [grown_apart(size) for size in sizes]
    module = starter()
    keep_memory()
    time = timed(module, cases_of(sizes, rows), rounds, module.config.vocab_size)
    kept = kept_by_size(module, sizes)
    found = lines(time, memory, kept)
    per_token = {
        "bytes_per_token": found["grown_bytes"] and found["grown_bytes"]["per_token"],
        "saved_bytes_per_token": found["saved_bytes"] and found["saved_bytes"]["per_token"],
    }
    return {
        **per_token, "arithmetic": arithmetic(starter_shape()), "lines": found, "time": time, "memory": memory,
        "saved": kept,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    print(f"{'tokens':>8}{'sequences':>11}{'micro':>8}{'s/step':>10}{'tokens/s':>10}")
    for row in found["time"]:
        micro = row["max_batch_tokens"] or "all"
        print(
            f"{row['tokens']:>8}{row['sequences']:>5} x {row['length']:>3}{micro:>8}{row['seconds']:>10.3f}"
            f"{row['tokens_per_second']:>10,.0f}"
        )
    for row, other in zip(found["memory"], found["saved"], strict=True):
        grown, kept = row["grown_bytes"] / 1e6, other["saved_bytes"] / 1e6
        print(f"{row['tokens']:>8} tokens grew the process by {grown:,.0f} MB, of which autograd held {kept:,.0f} MB")
    for name, fit in found["lines"].items():
        if fit:
            constant, slope, share = fit.values()
            print(f"{name} = {constant:.4g} + {slope:.4g} * tokens, at most {share:.1%} off")
    by_shape = found["arithmetic"]
    least, more = by_shape["bytes_per_token"], by_shape["bytes_per_token_with_all"]
    print(f"by arithmetic {least:,} bytes a token, {more:,} with all that is made again")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="512,1024,2048,4096,8192")
    parser.add_argument("--rows", default="2,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grown", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.grown:
        return print(json.dumps(grown(asked.grown)))
    sizes, rows = ([int(one) for one in text.split(",") if one] for text in (asked.sizes, asked.rows))
    found = measured(sizes, rows, asked.rounds)
    tell(asked, found, show)


if __name__ == "__main__":
    main()
