"""Is `rankwise advise` right? Its verdict beside that of whole runs, where training pays and where it does not.

    python lab/advising.py FOLDER [--only e2e,rte] [--kinds advice]     run what is not done yet
    python lab/advising.py FOLDER --table              the table of what is done

A full run has 100 steps and is measured on all held-out rows, 64 of a language model and 400 of an encoder. Training
pays where it is better than the best way without training (the base, or the base with five examples; of an encoder the
frequencies of the labels) by more than advise's margin, and better than a control: a whole run on the same rows with
their answers shuffled among the questions or, where none was made, the run's own answers on swapped pairs. 95 %
intervals exclude 0. Otherwise examples may pay.

Nothing pays on some tasks by their making, so no run is made: `…-shuffled` have their answers shuffled in all rows, and
the answers of `own` are those that the base writes itself. Language models are SmolLM2-135M, encoders MiniLM; steps
have 8 rows, and 16 of an encoder. Finished cells lie in FOLDER/advising.jsonl; lines of several folders may be joined.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from advising_truth import advised, verdict_of_run, whole_run
from claims import data, e2e, lines
from classification import rows_of

from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.inference.generate import answers_in_turn, asking_ids
from rankwise.rows.text.example import Message
from rankwise.runs.metrics_log import MetricsLog, read_metrics_log
from rankwise.system.memory import keep_memory

TEXT, ENCODER = "smollm2-135m", "minilm"
TRAINED, MEASURED, MEASURED_LABELS = 400, 64, 400
KINDS = ("advice", "run", "control")
Row = dict[str, Any]


def pairs(rows: list[tuple[str, str]], characters: int) -> list[Row]:
    """Short rows, in a random order and without repetition."""
    short = sorted({row for row in rows if len(row[0]) + len(row[1]) <= characters})
    random.Random(0).shuffle(short)
    return [{"prompt": question, "completion": answer} for question, answer in short]


def dolly() -> list[Row]:
    """The instructions without the text around them."""
    rows = [(row["prompt"].split("### Instruction:\n")[1].split("\n\n### ")[0], row["response"])
            for row in lines("dolly/train.jsonl")]  # fmt: skip
    return pairs(rows, 250)


def gsm8k() -> list[Row]:
    return pairs([(row["question"], row["answer"]) for row in lines("gsm8k/train.jsonl")], 260)


def superbowl() -> list[Row]:
    rows = [row for name in ("train", "valid") for row in lines(f"superbowl_facts/{name}.jsonl")]
    return pairs([(row["prompt"], row["completion"]) for row in rows], 330)


def sentiment() -> list[Row]:
    words = {"0": "negative", "1": "positive"}
    return pairs([(row["text"], words[row["label"]]) for row in rows_of("sst-2", "train")], 80)


def own() -> list[Row]:
    """Instructions with the answers that the base writes to them, where it comes to an end."""
    model = load(ModelConfig(name=TEXT))
    with data("alpaca/train.json").open(encoding="utf-8") as file:
        asked = [row["instruction"] for row in json.load(file) if not row["input"] and len(row["instruction"]) <= 80]
    ids = [asking_ids(model, [Message("user", question)]) for question in asked]
    answers = answers_in_turn(model, ids, GenerationConfig(max_new_tokens=96, repetition_check=False), 64)
    done = [(question, one.text) for question, one in zip(asked, answers, strict=True) if one.stopped == "end"]
    return pairs(done, 600)


def glue(task: str) -> list[Row]:
    rows = [row for row in rows_of(task, "train") if len(row["text"]) + len(row.get("text_pair", "")) <= 300]
    random.Random(0).shuffle(rows)
    return rows


TASKS: dict[str, tuple[str, Callable[[], list[Row]], bool]] = {
    "sst-2": (ENCODER, lambda: glue("sst-2"), False),
    "sst-2-shuffled": (ENCODER, lambda: glue("sst-2"), True),
    "cola": (ENCODER, lambda: glue("cola"), False),
    "rte": (ENCODER, lambda: glue("rte"), False),
    "sts-b": (ENCODER, lambda: glue("sts-b"), False),
    "sts-b-shuffled": (ENCODER, lambda: glue("sts-b"), True),
    "e2e": (TEXT, lambda: pairs(e2e()[0], 160), False),
    "e2e-shuffled": (TEXT, lambda: pairs(e2e()[0], 160), True),
    "own": (TEXT, own, True),
    "sentiment": (TEXT, sentiment, False),
    "sentiment-shuffled": (TEXT, sentiment, True),
    "gsm8k": (TEXT, gsm8k, False),
    "dolly": (TEXT, dolly, False),
    "superbowl": (TEXT, superbowl, False),
}
"""By name: the model, the rows, and whether nothing can be learned from them by their making."""


def answers_shuffled(rows: list[Row], seed: int) -> list[Row]:
    answer = "label" if "label" in rows[0] else "completion"
    answers = [row[answer] for row in rows]
    random.Random(seed).shuffle(answers)
    return [row | {answer: one} for row, one in zip(rows, answers, strict=True)]


def files(folder: Path, task: str) -> dict[str, Path]:
    """Rows to train on, the same with other answers, and held-out rows."""
    paths = {name: folder / f"{task}-{name}.jsonl" for name in ("trained", "control", "measured")}
    if not all(path.exists() for path in paths.values()):
        model, rows_of_task, _ = TASKS[task]
        held_out = MEASURED if model == TEXT else MEASURED_LABELS
        rows = rows_of_task()
        rows = answers_shuffled(rows, 1) if task.endswith("-shuffled") else rows
        trained = rows[held_out : held_out + TRAINED * (1 if model == TEXT else 4)]
        parts = {"trained": trained, "control": answers_shuffled(trained, 2), "measured": rows[:held_out]}
        for name, path in paths.items():
            path.write_text("".join(json.dumps(row) + "\n" for row in parts[name]), encoding="utf-8")
    return paths


def cells(names: list[str], kinds: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        yield from ((name, kind) for kind in KINDS if kind in kinds and (kind == "advice" or not TASKS[name][2]))


def run(folder: Path, cell: tuple[str, str]) -> Row:
    task, kind = cell
    paths, model, began = files(folder, task), TASKS[task][0], time.perf_counter()
    if kind == "advice":
        made = advised(model, paths["trained"], paths["measured"])
    else:
        made = whole_run(model, paths["trained" if kind == "run" else "control"], paths["measured"])
    return {"kind": "cell", "cell": list(cell), "wall_seconds": time.perf_counter() - began, **made}


def table(done: dict[tuple[str, str], Row]) -> Iterator[str]:
    yield "| task | advise | why | full run | share of the cost | base | without training | short | full | control |"
    yield "|---|---|---|---|---:|---:|---:|---:|---:|---:|"
    agreed = counted = 0
    for task in TASKS:
        advice, full, control = (done.get((task, kind)) for kind in ("advice", "run", "control"))
        if advice is None or (full is None and not TASKS[task][2]):
            continue
        verdict, losses = ("neither", [None] * 4) if full is None else verdict_of_run(full, control)
        counted, agreed = counted + 1, agreed + (verdict == advice["verdict"])
        base, untrained, after, shuffled = ("-" if one is None else f"{one:.3f}" for one in losses)
        yield (
            f"| {task} | {advice['verdict']} | {advice['reason']} | {verdict} | {advice['share']:.0%} | {base} | "
            f"{untrained} | {advice['adapter']['loss']['value']:.3f} | {after} | {shuffled} |"
        )
    yield f"\nThe verdicts agree on {agreed} of {counted} tasks."


def done_in(log: Path) -> dict[tuple[str, str], Row]:
    rows = read_metrics_log(log) if log.exists() else []
    return {tuple(row["cell"]): row for row in rows if row["kind"] == "cell"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(TASKS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "advising.jsonl"
    if given.table:
        print("\n".join(table(done_in(log))))
        return
    keep_memory()
    time.perf_counter = time.process_time  # others work on this machine; a share is of this process's seconds
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    done = done_in(log)
    with MetricsLog(log) as written:
        for cell in cells(given.only.split(","), given.kinds.split(",")):
            if cell not in done:
                done[cell] = run(folder, cell)
                written.append(done[cell])
                print(*cell, done[cell].get("verdict", ""), f"{done[cell]['wall_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
