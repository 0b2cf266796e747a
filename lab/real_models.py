"""What fine-tuning real models on two cores takes and gives: SQL, calls of tools, JSON and descriptions.

    python lab/real_models.py FOLDER --models 0.5b=qwen-0.5b,1.5b=FILE.gguf [--quantizer llama-quantize]
                              [--cells sql:lora:0.5b:0,...]
    python lab/real_models.py FOLDER --table

A cell is a task, a way, a model and a seed. It is a few commands of rankwise, as a user types them; the file of cells
keeps them, what they took, what was forecast, and the score of each measured row. Models are named by what `--model`
takes. The ways:

    base, examples      the model as it is, alone or after three solved examples
    lora, adalora       trained with all defaults: two passes, a tenth of the rows held out
    q4-base, q4-lora    the same over the model's file in Q4_0
    lora-then-q4        what `lora` has learned, merged and then written in Q4_0
    lora-then-q4_k_m    the same in Q4_K_M
    lora-over-q4        the adapter that `lora` has learned, beside the file in Q4_0

Files in Q4_0 and Q4_K_M are made by llama.cpp's llama-quantize from a GGUF file in bfloat16; without --quantizer these
ways are left out. Finished cells lie in FOLDER/cells.jsonl.
"""

from __future__ import annotations

import json
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from claims import SETS
from claims import data as folder_of
from sql_rows import SYSTEM, sql_rows
from stored_cells import command

from rankwise.commands.demo import demo_rows
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.metrics import metric_named

Cell = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """`over` and `beside` name the format of the file that is trained over, or that the adapter is laid over
    afterwards; `then` that of the merged file."""

    method: str = ""
    over: str = ""
    then: str = ""
    beside: str = ""

    @property
    def quantizes(self) -> bool:
        return bool(self.over or self.then or self.beside)


WAYS = {
    "base": Way(), "examples": Way(), "lora": Way("lora"), "adalora": Way("adalora"), "q4-base": Way(over="Q4_0"),
    "q4-lora": Way("lora", over="Q4_0"), "lora-then-q4": Way("lora", then="Q4_0"),
    "lora-then-q4_k_m": Way("lora", then="Q4_K_M"), "lora-over-q4": Way("lora", beside="Q4_0"),
}  # fmt: skip
SCORES = {"sql": "sql", "tools": "tool_call", "json": "json_exact", "e2e": "rouge_l"}
TRAINED = {"sql": 400, "tools": 88, "json": 300, "e2e": 400}
MEASURED = {"sql": 300, "tools": 60, "json": 100, "e2e": 80}
TOLD = ("steps", "loss", "train_seconds", "tokens_per_second", "peak_rss_bytes", "forecast", "adapter_bytes", "metrics",
        "validation_loss_after")  # fmt: skip
SCORED = ("--dtype", "bfloat16", "--no-base", "--no-forgetting")
SEEDS = (0, 1, 2)
USUAL = [
    *(("sql", way, "0.5b", 0) for way in WAYS),
    *(("sql", way, "0.5b", seed) for seed in SEEDS for way in ("lora", "q4-lora", "lora-then-q4", "lora-then-q4_k_m")),
    ("sql", "base", "1.5b", 0), ("sql", "lora", "1.5b", 0),
    *((task, way, "0.5b", 0) for task in ("tools", "json", "e2e") for way in ("base", "examples", "lora", "adalora")),
]  # fmt: skip


class Commands:
    """Commands of one cell, and what each of them told and took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, list[Row]()

    def __call__(self, *words: str) -> None:
        began = time.perf_counter()
        arguments = [sys.executable, "-m", "rankwise", *words, "--json", "--quiet"]
        ended = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False, cwd=self.folder)
        if ended.returncode:
            raise SystemExit(f"rankwise {shlex.join(words)}: {ended.stdout}")
        told, seconds = json.loads(ended.stdout), round(time.perf_counter() - began, 1)
        kept = {key: told[key] for key in TOLD if key in told}
        self.done.append({"command": f"rankwise {shlex.join(words)}", "seconds": seconds, **kept})

    def quantized(self, run: str, strength: str, kind: str, file: str) -> str:
        """FILE of what the run has learned, merged, in this format of llama.cpp."""
        program, whole = json.loads((self.folder / "models.json").read_text())["quantizer"], f"bf16-{file}"
        self("export", run, "--to", whole, "--format", "gguf", "--dtype", "bfloat16", "--strength", strength,
             "--no-verify")  # fmt: skip
        subprocess.run([program, whole, f"./{file}", kind], cwd=self.folder, check=True, capture_output=True)
        (self.folder / whole).unlink()
        self.done.append({"command": f"{Path(program).name} {whole} ./{file} {kind}"})
        return file


def run(folder: Path, cell: Cell) -> Row:
    """`folder` is the working folder; `models.json` there has the models."""
    task, name, size, seed = cell
    way, model = WAYS[name], json.loads((folder / "models.json").read_text())["models"][size]
    rankwise, flags = Commands(folder), list[str]()
    if way.over or way.beside:
        quantized = base_in_q4(rankwise, model, f"{size}-{(way.over or way.beside).lower()}.gguf")
        model, flags = (quantized, []) if way.over else (model, ["--base-model", quantized, "--force-base"])
    answered = model
    if way.method:
        answered = "-".join([task, "q4" if way.over else "", way.method, size, str(seed)]).replace("--", "-")
        if not (folder / "runs" / answered / "report.json").exists():
            rankwise("train", "--model", model, "--data", f"{task}-trained.jsonl", "--run", answered, "--method",
                     way.method, "--seed", str(seed), "--restart")  # fmt: skip
    if way.then:
        answered = rankwise.quantized(answered, "1", way.then, f"{answered}-{way.then.lower()}.gguf")
    answers = Path("answers") / f"{'-'.join(map(str, cell))}.jsonl"
    (folder / answers).parent.mkdir(exist_ok=True)
    (folder / answers).unlink(missing_ok=True)
    measured, score = f"{task}-{'examples' if name == 'examples' else 'measured'}.jsonl", SCORES[task]
    rankwise("evaluate", answered, "--data", measured, "--score", score, *SCORED, "--out", str(answers), *flags)
    scores = [json.loads(line)[score] for line in (folder / answers).read_text().splitlines()]
    if way.then:
        (folder / answered).unlink()
    return {
        "kind": "cell", "cell": list(cell), "value": statistics.mean(scores), "scores": scores,
        "rows": sha256((folder / measured).read_bytes()).hexdigest()[:16], "commands": rankwise.done,
    }  # fmt: skip


def base_in_q4(rankwise: Commands, model: str, file: str) -> str:
    """The model's own file: a run of one step, merged with next to no strength."""
    if not (rankwise.folder / file).exists():
        rankwise("train", "--model", model, "--data", "sql-trained.jsonl", "--run", "one-step", "--steps", "1",
                 "--restart")  # fmt: skip
        rankwise.quantized("one-step", "1e-9", "Q4_0", file)
    return file


def files(task: str) -> None:
    """TASK-trained.jsonl, -measured.jsonl and, with three solved rows before each, -examples.jsonl."""
    trained, measured = (rows[: many[task]] for rows, many in zip(ROWS[task](), (TRAINED, MEASURED), strict=True))
    for name, rows in (("trained", trained), ("measured", measured)):
        _write(Path(f"{task}-{name}.jsonl"), rows)
    for row in measured:
        before = [one for one in trained if not _offered(one).keys() & _offered(row).keys()][:3]
        solved = [message for one in before for message in one["messages"] if message["role"] != "system"]
        first = [message for message in row["messages"] if message["role"] == "system"]
        row["messages"] = [*first, *solved, *row["messages"][len(first) :]]
        if "tools" in row:  # those of the solved rows, which call them, stand before its own
            row["tools"] = list({name: tool for one in (*before, row) for name, tool in _offered(one).items()}.values())
    _write(Path(f"{task}-examples.jsonl"), measured)


def _offered(row: Row) -> dict[str, Row]:
    return {tool["name"]: tool for tool in row.get("tools", ())}


def _write(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _asked(prompt: str, answer: str, *system: Row, **more: Any) -> Row:
    return {
        "messages": [*system, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
        **more,
    }


def _sql() -> list[list[Row]]:
    system = {"role": "system", "content": SYSTEM}
    return [
        [
            _asked(row["prompt"], row["completion"], system, tables=row["tables"], wording=row["wording"])
            for row in sql_rows(measured, count, 0)
        ]
        for measured, count in ((False, TRAINED["sql"]), (True, MEASURED["sql"]))
    ]


def _json() -> list[list[Row]]:
    return [[json.loads(line) for line in lines] for lines in demo_rows()]


def _e2e() -> list[list[Row]]:
    return [[_asked(*row) for row in rows] for rows in SETS["e2e"]()]


def _tools() -> list[list[Row]]:
    """Whole conversations are learned. Measured are the first calls of others, or their first answers where nothing is
    called."""
    rows = [
        {"messages": list(map(_turn, row["conversations"])), "tools": json.loads(row["tools"])}
        for row in json.loads((folder_of("sharegpt") / "glaive_toolcall_train.json").read_text())
    ]
    rows = [row for row in rows if row["tools"]]
    random.Random(0).shuffle(rows)
    measured = rows[: MEASURED["tools"]]
    for row in measured:
        calls = (at + 1 for at, message in enumerate(row["messages"]) if "tool_calls" in message)
        row["messages"] = row["messages"][: next(calls, 2)]
    return [rows[MEASURED["tools"] :], measured]


def _turn(said: Row) -> Row:
    if said["from"] == "function_call":
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": json.loads(said["value"])}]}
    return {
        "role": {"human": "user", "gpt": "assistant", "observation": "tool"}[said["from"]],
        "content": said["value"],
    }


ROWS = {"sql": _sql, "tools": _tools, "json": _json, "e2e": _e2e}


def cells(done: object, models: list[str], cells: list[str], quantizer: list[str]) -> Iterator[Cell]:
    del done
    named = dict(one.split("=") for one in models)
    Path("models.json").write_text(json.dumps({"models": named, "quantizer": quantizer[0]}))
    given = [one.split(":") for one in cells if one]
    for one in given:
        if len(one) != 4 or one[0] not in ROWS or one[1] not in WAYS or not one[3].isdecimal():
            sys.exit(f"{':'.join(one)} is no cell: TASK:WAY:MODEL:SEED, of {', '.join(ROWS)} and {', '.join(WAYS)}.")
    wanted = [(task, way, size, int(seed)) for task, way, size, seed in given]
    every = [
        cell for cell in dict.fromkeys(wanted or USUAL)
        if cell[2] in named and (quantizer[0] or not WAYS[cell[1]].quantizes)
    ]  # fmt: skip
    for task in dict.fromkeys(cell[0] for cell in every):
        files(task)
    yield from every


def table(folder: Path, done: dict[Cell, Row]) -> Iterator[str]:
    """Minutes of the steps and peak memory of a training are medians over the seeds, the forecast's in brackets.
    Differences are of the same rows, each the mean of the seeds that both have, with a 95 % interval; questions of SQL
    with the same wording are drawn together."""
    del folder
    ways: dict[Cell, dict[int, Row]] = {}
    for (task, way, size, seed), row in sorted(done.items(), key=lambda one: [str(part) for part in one[0]]):
        ways.setdefault((task, size, way), {})[seed] = row
    yield "| task | model | way | score by seed | minutes | GB | tokens/s | minus `base` | minus `lora-then-q4` |"
    yield "|---|---|---|---|---|---|---:|---|---|"
    for (task, size, way), rows in ways.items():
        trained = [
            one for row in rows.values() for one in row["commands"]
            if "train_seconds" in one and f"--run {task}-" in one["command"]
        ]  # fmt: skip
        groups = [row.get("wording", str(at)) for at, row in enumerate(ROWS[task]()[1][: MEASURED[task]])]
        minus = [
            _minus(ways[task, size, other], rows, groups) if (task, size, other) in ways and way != other else ""
            for other in ("base", "lora-then-q4")
        ]
        scores = ", ".join(f"{row['value']:.3f}" for row in rows.values())
        yield f"| {task} | {size} | {way} | {scores} | {_took(trained)} | {' | '.join(minus)} |"


def _took(trained: list[Row]) -> str:
    if not trained:
        return " |  | "
    seconds = statistics.median(one["train_seconds"] for one in trained)
    memory, speed = (statistics.median(one[key] for one in trained) for key in ("peak_rss_bytes", "tokens_per_second"))
    forecast = trained[0]["forecast"]
    expected = f"{forecast['seconds'] * forecast['share_of_steps'] / 60:.1f}" if forecast["seconds"] else "none"
    return f"{seconds / 60:.1f} ({expected}) | {memory / 1e9:.2f} ({forecast['peak_bytes'] / 1e9:.2f}) | {speed:.0f}"


def _minus(first: dict[int, Row], second: dict[int, Row], groups: list[str]) -> str:
    """A model as it is has one seed, which stands for all."""
    several = min(len(first), len(second)) > 1
    seeds = sorted(set(first) & set(second) if several else set(first) | set(second))
    both = []
    for rows in (first, second):
        every = [rows[seed if seed in rows else 0]["scores"] for seed in seeds]
        sums: dict[str, list[float]] = {}
        for group, scores in zip(groups, zip(*every, strict=True), strict=True):
            sums.setdefault(group, [0.0, 0.0])
            sums[group] = [sums[group][0] + statistics.mean(scores), sums[group][1] + 1]
        both.append(list(sums.values()))
    found = difference(metric_named("exact"), *both)
    return f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


if __name__ == "__main__":
    command(
        __doc__, "cells.jsonl", {"models": "0.5b=qwen-0.5b", "cells": "", "quantizer": ""}, cells, run,
        lambda row: f"{row['value']:.3f} {sum(one.get('seconds', 0) for one in row['commands']):.0f} s", table,
    )  # fmt: skip
