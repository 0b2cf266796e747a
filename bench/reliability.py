"""Runs that are killed, torn, starved and lied to, and whether each ends with the bytes of an undisturbed one.

    python bench/reliability.py FOLDER [--parts R04 R06 …] [--counts small|large] [--seed 0] [--minutes N]
        [--json] [--out TITLE]

A tiny Llama is trained for 11 steps with a checkpoint every 3 (tests/kit/small_runs.py). Each cell disturbs the
training in one way (tests/kit/fault_cells.py), lets it go on as a user would, and compares the adapter's SHA-256 and
the metrics log. Finished cells lie in FOLDER/cells.jsonl, and a second call goes on where the first one stopped.
--minutes ends it.

    R01  SIGKILL at random times, LoRA, then --resume           R11  death while checkpoints are rotated
    R02  the same with AdaLoRA                                  R12  names and clocks lie
    R04  each file operation fails: EIO, no space, death        R22  two trainers of one run at the same moment
    R05  power failure after any operation                      R23  what may lie where the lock should be
    R06  a damaged file in the newest checkpoint, in the run, in both
    R10  the system refuses: no right, read-only, too many files open, folders removed
    R19  memory runs out in a step, in validation, in saving
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from telling import parser_of, tell

COUNTS = {
    "small": {"R01": 20, "R02": 15, "R05": 200, "R11": 50, "R22": 50},
    "large": {"R01": 200, "R02": 150, "R05": 2000, "R11": 300, "R22": 500},
}
PARTS = ("R01", "R02", "R04", "R05", "R06", "R10", "R11", "R12", "R19", "R22", "R23")
Cell = tuple[str, Callable[[], list[str]]]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--counts", choices=COUNTS, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    chosen = parser.parse_args()
    os.environ.setdefault("RANKWISE_CACHE", str(chosen.folder.absolute() / "cache"))
    results = measured(chosen.folder, chosen.parts, COUNTS[chosen.counts], chosen.seed, chosen.minutes)
    tell(chosen, results, show)


def measured(folder: Path, parts: list[str], counts: dict[str, int], seed: int, minutes: float) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * minutes
    journal = folder / "cells.jsonl"
    done = {(row["part"], row["cell"]): row for row in map(json.loads, _lines(journal))}
    for part in parts:
        for cell, act in _shuffled(cells_of(part, folder / "work", counts, seed)):
            if (part, cell) in done or time.monotonic() > until:
                continue
            problems = act()
            done[part, cell] = row = {"part": part, "cell": cell, "problems": problems}
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if problems:
                print(part, cell, problems, file=sys.stderr, flush=True)
    return {"parts": {part: _summary(part, list(done.values())) for part in PARTS}}


def _shuffled(cells: Iterator[Cell]) -> list[Cell]:
    """In a random order, always the same, so that what is done when time is up is a fair sample."""
    listed = list(cells)
    random.Random(0).shuffle(listed)
    return listed


def base_of(folder: Path) -> Path:
    """A tiny Llama with a tokenizer, as the tests have it."""
    from conftest import chat_tokenizer, tiny_model

    base = folder.parent / "base"
    if not (base / "tokenizer.json").exists():
        tokenizer = chat_tokenizer()
        tiny_model("llama", vocab=len(tokenizer)).save_pretrained(base)
        tokenizer.save_pretrained(base)
    return base


def _lines(journal: Path) -> list[str]:
    return journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []


def _summary(part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if row["part"] == part]
    failed = {row["cell"]: row["problems"] for row in own if row["problems"]}
    return {"cells": len(own), "passed": len(own) - len(failed), "failed": failed}


def cells_of(part: str, folder: Path, counts: dict[str, int], seed: int) -> Iterator[Cell]:
    from kit.fault_cells import LIES, LOCKS, REFUSED, REMOVED, STAGES, STARVING, Cells, torn_cells
    from kit.file_faults import MODES

    cells, chance = Cells(folder.absolute(), base_of(folder.absolute())), random.Random(f"{part}-{seed}")
    if part in ("R01", "R02"):
        method = "lora" if part == "R01" else "adalora"
        for number in range(counts[part]):
            yield f"{number}", lambda n=number: cells.killed(method, random.Random(f"{part}-{seed}-{n}"))
    elif part == "R04":
        for stage in STAGES:
            for one in cells.operations(stage):
                for mode in MODES:
                    yield f"{stage} {one.number} {mode}", lambda s=stage, n=one.number, m=mode: cells.fault(s, n, m)
    elif part == "R05":
        operations = cells.operations("train")
        for number in range(counts[part]):
            count = chance.randint(0, len(operations))
            yield f"{number} at {count}", lambda c=count, n=number: cells.power_failure(operations, c, n)
    elif part == "R06":
        for name, damage, how in torn_cells():
            yield f"{name} {damage} {' '.join(how)}", lambda n=name, d=damage, h=how: cells.torn(n, d, **h)
    elif part == "R10":
        for mode, share in REFUSED:
            yield f"{mode} from {share:.0%} on", lambda m=mode, p=share: cells.refused(m, p)
        for name in REMOVED:
            yield f"removed: {name}", lambda n=name: cells.removed(n)
    elif part == "R19":
        for where, count in STARVING:
            yield f"{where} {count}", lambda w=where, n=count: cells.starved(w, n)
    elif part == "R11":
        total = cells.prepare_rotation()
        for number in sorted(chance.sample(range(total), min(total, counts[part]))):
            yield f"{number}", lambda n=number: cells.rotation(n)
    elif part == "R12":
        for name in LIES:
            yield name, lambda n=name: cells.lie(n)
    elif part == "R22":
        for number in range(counts[part]):
            yield f"{number}", cells.two_at_once
    else:
        for name in LOCKS:
            yield name, lambda n=name: cells.lock(n)


def show(results: dict[str, Any]) -> None:
    for part, counts in results["parts"].items():
        print(f"{part}  {counts['passed']:,} of {counts['cells']:,}")
        for cell, problems in counts["failed"].items():
            print(f"     {cell}: {'; '.join(problems)[:200]}")


if __name__ == "__main__":
    main()
