"""A forecast held against its training: peak memory, tokens and seconds of a step, and the whole command.

    python bench/forecasts.py [--only 1,5,9] [--again] [--json] [--out TITLE]

Twenty trainings, each a `rankwise train` of its own on real rows, are forecast by `rankwise plan` with the same flags.
A finished training is kept in the cache folder and not run again; forecasts are made anew each time (`--again` runs the
trainings too). Peak memory is the largest resident memory that the training itself records; with two processes, that of
the first. Seconds of a step are the median of all but the first, which compiles and touches memory for the first time.

A padded row counts with its padding in the forecast and without it in the fact.

The 1.5B file is Qwen2.5-Coder-1.5B-Instruct in Q4_K_M, at RANKWISE_CODER; T5 has random weights. Times need a machine
that does nothing else.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from random_models import STARTER, T5, model_of
from telling import parser_of, tell

from rankwise.system.cache import cache_folder

FOLDER = cache_folder() / "bench-forecasts"
LARGER, CODER = "qwen-0.5b", "coder-1.5b"
ENCODER, VISION, CONVOLUTIONS = "minilm", "dinov2-small", "efficientnet-lite0"
DOLLY, BANKING, SNIPS, PAIRS, PICTURES = "dolly", "banking77", "snips", "pairs", "cifar10"
SHORT = "--max-length 512 --batch-size 8 --held-out 16"
BRIEF = "--max-length 256 --batch-size 8 --held-out 8"


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    rows: str
    count: int
    flags: str
    processes: int = 1

    def words(self) -> list[str]:
        return ["--model", _model(self.model), *_rows(self.rows, self.count), *self.flags.format(FOLDER).split()]


CASES = (
    Case("LoRA", STARTER, DOLLY, 160, f"{SHORT} --steps 12"),
    Case("AdaLoRA", STARTER, DOLLY, 160, f"{SHORT} --steps 12 --method adalora"),
    Case("full", STARTER, DOLLY, 160, f"{SHORT} --steps 8 --method full"),
    Case("VeRA", STARTER, DOLLY, 160, f"{SHORT} --steps 12 --method vera"),
    Case("LoRA, eager, float32", STARTER, DOLLY, 160, f"{SHORT} --steps 6 --backend eager --set model.dtype=float32"),
    Case("LoRA, packing", STARTER, DOLLY, 160, f"{SHORT} --steps 12 --set data.packing=true"),
    Case("LoRA, anchor", STARTER, DOLLY, 160, f"{SHORT} --steps 8 --anchor 0.1 --anchor-text {{}}/anchor.txt"),
    Case("LoRA, replay", STARTER, DOLLY, 160, f"{SHORT} --steps 12 --replay 0.3 --replay-data {{}}/replay.jsonl"),
    Case("DPO", STARTER, PAIRS, 160, f"{SHORT} --steps 8 --objective preference"),
    Case("LoRA, NF4", STARTER, DOLLY, 160, f"{SHORT} --steps 8 --quantize nf4"),
    Case("LoRA, int8", LARGER, DOLLY, 120, f"{BRIEF} --steps 5 --quantize int8"),
    Case("LoRA", LARGER, DOLLY, 120, f"{BRIEF} --steps 6"),
    Case("AdaLoRA", LARGER, DOLLY, 120, f"{BRIEF} --steps 6 --method adalora"),
    Case("LoRA, four-bit GGUF", CODER, DOLLY, 80, f"{BRIEF} --steps 4"),
    Case("LoRA, classes", ENCODER, BANKING, 800, "--epochs 2"),
    Case("LoRA, tags", ENCODER, SNIPS, 800, "--epochs 2"),
    Case("LoRA", T5, DOLLY, 160, f"{SHORT} --steps 12"),
    Case("LoRA, images", VISION, PICTURES, 240, "--image-size 112 --epochs 2"),
    Case("LoRA, images", CONVOLUTIONS, PICTURES, 240, "--image-size 112 --epochs 2"),
    Case("LoRA, two processes", STARTER, DOLLY, 160, f"{SHORT} --steps 8", 2),
)  # fmt: skip


def _model(name: str) -> str:
    return os.environ["RANKWISE_CODER"] if name == CODER else model_of(name, FOLDER)


def _rows(kind: str, count: int) -> list[str]:
    data = Path(os.environ["RANKWISE_DATA"])
    if kind == PICTURES:
        return ["--data", str(data / kind / "train.parquet"), "--set", f"data.rows={count}"]
    if kind == DOLLY:
        return ["--data", str(data / kind / "train.jsonl"), "--set", f"data.rows={count}"]
    if kind == BANKING:
        with (data / kind / "train.csv").open(encoding="utf-8") as file:
            made = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)][::11][:count]
    else:
        made = list({SNIPS: _tagged, PAIRS: _pairs}[kind](data, count))
    return ["--data", _written(FOLDER / f"{kind}-{count}.jsonl", made)]


def _tagged(data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Every text with the places of its slots' values, each value at its first place."""
    lines = (data / SNIPS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[:count]):
        spans, end = [], 0
        values = ((value, name) for name, values in row["slots"].items() for value in values)
        for at, value, name in sorted((row["text"].find(value), value, name) for value, name in values):
            if at >= end:
                end = at + len(value)
                spans.append({"start": at, "end": end, "label": name})
        yield {"text": row["text"], "spans": spans}


def _dolly(data: Path) -> list[dict[str, Any]]:
    lines = (data / DOLLY / "train_alpaca.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _pairs(data: Path, count: int) -> Iterator[dict[str, Any]]:
    """The answer of a row is preferred to that of the next one."""
    rows = [row for row in _dolly(data) if not row["input"]][: count + 1]
    for row, other in pairwise(rows):
        yield {"prompt": row["instruction"], "chosen": row["output"], "rejected": other["output"]}


def _written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def write_extras() -> None:
    """The text of the anchor and the rows of the replay: rows of Dolly that no case learns."""
    rows = _dolly(Path(os.environ["RANKWISE_DATA"]))[500:600]
    _written(FOLDER / "replay.jsonl", rows)
    (FOLDER / "anchor.txt").write_text("\n\n".join(row["output"] for row in rows), encoding="utf-8")


def said(start: list[str], words: list[str]) -> dict[str, Any]:
    """The JSON of a command, with the seconds that it took."""
    began = time.perf_counter()
    done = subprocess.run([*start, *words, "--json"], cwd=FOLDER, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout) | {"took": time.perf_counter() - began}


def trained(case: Case, run: str) -> dict[str, Any]:
    shutil.rmtree(FOLDER / "runs" / run, ignore_errors=True)
    start = [sys.executable, "-m", "rankwise", "train"]
    if case.processes > 1:
        start[2:] = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes),
                     "--local-addr", "localhost", "-m", "rankwise", "--", "train"]  # fmt: skip
    done = said(start, [*case.words(), "--run", run])
    lines = (FOLDER / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line.get("event", "step") == "step" and "seconds" in line]
    later = steps[1:] or steps
    return {
        "peak": done["peak_rss_bytes"], "command": done["took"],
        "tokens_per_step": statistics.mean(step["tokens"] for step in steps),
        "seconds_per_step": statistics.median(step["seconds"] for step in later),
    }  # fmt: skip


def measured(case: Case, number: int, again: bool) -> dict[str, Any]:
    file = FOLDER / "done" / f"{number}.json"
    if again or not file.is_file():
        fact = trained(case, f"forecast-{number}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(fact))
    return json.loads(file.read_text())


def forecast(case: Case) -> dict[str, Any]:
    more = ["--processes", str(case.processes)] if case.processes > 1 else []
    plan = said([sys.executable, "-m", "rankwise", "plan"], [*case.words(), *more])
    return {
        "peak": plan["memory_bytes"]["peak"], "command": plan["command_seconds"],
        "tokens_per_step": plan["tokens_per_step"], "seconds_per_step": plan["seconds_per_step"],
        "plan_seconds": plan["took"],
    }  # fmt: skip


QUANTITIES = {"peak": "memory", "tokens_per_step": "tokens a step", "seconds_per_step": "step", "command": "command"}
FORMS = {"peak": "{:.2f} GB", "tokens_per_step": "{:,.0f}", "seconds_per_step": "{:.2f} s", "command": "{:.0f} s"}


def show(found: dict[str, Any]) -> None:
    titles = [f"{name}: forecast | fact | error" for name in QUANTITIES.values()]
    print(f"| # | training | model | {' | '.join(titles)} |\n|---|---|---|{'---:|---:|---:|' * len(QUANTITIES)}")
    for row in found["rows"]:
        cells = [
            FORMS[key].format(side[key] / (1e9 if key == "peak" else 1))
            for key in QUANTITIES
            for side in (row["forecast"], row["fact"])
        ]
        threes = [
            f"{one} | {other} | {row['forecast'][key] / row['fact'][key] - 1:+.0%}"
            for key, one, other in zip(QUANTITIES, cells[::2], cells[1::2], strict=True)
        ]
        print(f"| {row['number']} | {row['name']} | {row['model']} | {' | '.join(threes)} |")
    print("\n| error | median | worst |\n|---|---:|---:|")
    for key, name in QUANTITIES.items():
        off = [row["forecast"][key] / row["fact"][key] - 1 for row in found["rows"]]
        print(f"| {name} | {statistics.median(map(abs, off)):.1%} | {max(off, key=abs):+.1%} |")
    seconds = [row["forecast"]["plan_seconds"] for row in found["rows"]]
    print(f"\n`rankwise plan` itself: median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    write_extras()
    rows = []
    for number in [int(one) for one in asked.only.split(",")] if asked.only else range(1, len(CASES) + 1):
        case = CASES[number - 1]
        row = {"number": number, "name": case.name, "model": case.model, "forecast": forecast(case)}
        rows.append(row | {"fact": measured(case, number, asked.again)})
        print(f"{number}: {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
    tell(asked, {"rows": rows}, show)


if __name__ == "__main__":
    main()
