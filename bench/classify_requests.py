"""A server of a classifier, asked by many clients at once: whether each answer is what `rankwise predict` writes.

    python bench/classify_requests.py [--requests 10000] [--clients 16] [--steps 180] [--json] [--out TITLE]

Trains the starter minilm on 720 texts of DART (RANKWISE_DATA) to name the source that each comes from, writes what the
run predicts for 1,500 other texts, starts `rankwise serve` over it, and asks. A request has 1, 2 or 8 texts; each
second one has objects with the name of the column. An answer is right if it names the same class with the same
probabilities, to the six digits that the file has and the rounding of float32 in another batch. The clients share the
processor with the server.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from asked_server import ask, percentile, serving
from telling import parser_of, tell

TRAINED, OTHERS, CLOSE = 720, 1500, 5e-6
RUN = "sources"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=180)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        expected = prepare(Path(folder), chosen.steps)
        results = asyncio.run(measured(Path(folder), expected, chosen))
    tell(chosen, results, lambda one: print(json.dumps(one, indent=1)))


def prepare(folder: Path, steps: int) -> list[tuple[str, str, dict[str, float]]]:
    """Train; each other text, with its class and the probabilities that `rankwise predict` writes."""
    with (Path(os.environ["RANKWISE_DATA"]) / "dart" / "dev.jsonl").open(encoding="utf-8") as file:
        every = [one for line in file for one in json.loads(line)["annotations"]]
    rows = [*{one["text"].strip(): one["source"] for one in every if one["text"].strip()}.items()]
    random.Random(0).shuffle(rows)
    for name, part in (("train", rows[:TRAINED]), ("others", rows[TRAINED : TRAINED + OTHERS])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("body", "queue"), *part])

    def rankwise(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "rankwise", *words, "--quiet"], cwd=folder, check=True)

    rankwise(
        "train", "--model", "minilm", "--data", "train.csv", "--prompt", "{body}", "--completion", "{queue}",
        "--run", RUN, "--steps", str(steps), "--set", "model.dtype=float32",
    )  # fmt: skip
    rankwise("predict", RUN, "--data", "others.csv", "--out", "predicted.jsonl")
    predicted = map(json.loads, (folder / "predicted.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        (row["body"], row["prediction"], {
            name.removeprefix("probability_"): value for name, value in row.items() if name.startswith("probability_")
        })
        for row in predicted
    ]  # fmt: skip


async def measured(
    folder: Path, expected: list[tuple[str, str, dict[str, float]]], chosen: Namespace
) -> dict[str, Any]:
    drawn, numbers, answers = random.Random(1), count(), list[tuple[float, int, int, float]]()
    sizes = [drawn.choice((1, 1, 1, 1, 1, 1, 1, 2, 8)) for _ in range(chosen.requests)]
    with serving(SimpleNamespace(names=[f"runs/{RUN}"], folder=folder)) as server:  # pyright: ignore[reportArgumentType]

        async def client() -> None:
            while (number := next(numbers)) < chosen.requests:
                rows = [expected[(number + at) % len(expected)] for at in range(sizes[number])]
                items = [{"body": text} if number % 2 else text for text, _, _ in rows]
                answer = await ask(server.port, {"model": RUN, "input": items}, route="classify")
                assert answer.status == 200, answer.body
                differences = [
                    abs(one["probabilities"][name] - share) if one["label"] == label else 1.0
                    for one, (_, label, shares) in zip(json.loads(answer.body)["data"], rows, strict=True)
                    for name, share in shares.items()
                ]  # fmt: skip
                answers.append((answer.seconds, len(rows), max(differences) < CLOSE, max(differences)))

        memory, began, busy = server.facts.memory_info().rss, time.perf_counter(), server.busy
        await asyncio.gather(*(client() for _ in range(chosen.clients)))
        seconds, busy = time.perf_counter() - began, server.busy - busy
        counts, after = server.metrics(), server.facts.memory_info().rss
    milliseconds, rows, right, differences = zip(*answers, strict=True)
    return {
        "requests": len(answers), "clients": chosen.clients, "rows": sum(rows), "right": sum(right),
        "largest_difference": max(differences), "requests_per_second": len(answers) / seconds,
        "rows_per_second": sum(rows) / seconds, "p50_ms": 1000 * percentile(milliseconds, 0.5),
        "p99_ms": 1000 * percentile(milliseconds, 0.99), "server_processor_seconds": busy, "seconds": seconds,
        "memory_before_mb": memory / 2**20, "memory_after_mb": after / 2**20,
        "refused": counts["rankwise_refused_total"], "failed": counts["rankwise_failed_total"],
        "classes": sorted({label for _, label, _ in expected}),
    }  # fmt: skip


if __name__ == "__main__":
    main()
