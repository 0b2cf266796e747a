"""Does preference tuning learn a known preference, and that of people? DPO and ORPO on SmolLM2-135M-Instruct.

    python lab/preference.py FOLDER            run what is not done yet
    python lab/preference.py FOLDER --table    the tables of what is done

dolly, gsm8k    the known rule: the answer of the data set is preferred over the one that the base itself writes
oasst           the ranks that people gave: each answer of an OpenAssistant message over each one that is ranked lower;
                held out by conversation tree, so that no prompt is in both parts

One pass over the training pairs with LoRA, r 16, on all linear layers. The accuracy is the share of held-out pairs
whose chosen answer is preferred, after the last step, with Wilson's 95 % interval. Finished cells lie in
FOLDER/preference.jsonl. RANKWISE_DATA is the folder of the data sets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stored_cells import alone, done_in, run_missing

from rankwise.base.loading import load
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.inference.generate import answers_in_turn, asking_ids
from rankwise.rows.text.example import Message
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

MODEL, LONGEST = "smollm2-135m", 256
TRAINED, MEASURED, WRITTEN = 160, 80, 64
"""Pairs of the known rule, and the most tokens of an answer of the base."""
TREES_APART, SHORT = 50, 600
"""Pairs of oasst that are held out, rounded to whole trees, and the most characters of a conversation."""
FILES = {"dolly": "train_alpaca.jsonl", "gsm8k": "train.jsonl"}
RATES, SEEDS = (5e-5, 1e-3), (0, 1)
Cell = tuple[str, str, float | str, int]
"""Task, loss, learning rate, seed."""


def cells() -> Iterator[Cell]:
    losses, tasks = ("dpo", "orpo"), ("dolly", "oasst", "gsm8k")
    yield from ((task, loss, "auto", 0) for loss in losses for task in tasks)
    yield from (("dolly", loss, rate, 0) for rate in RATES for loss in losses)
    yield from ((task, loss, "auto", seed) for seed in SEEDS[1:] for task in tasks for loss in losses)


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    keep_memory()
    task, loss, rate, seed = cell
    experiment = Experiment(
        model={"name": MODEL}, run="-".join(map(str, cell)), objective="preference", preference={"loss": loss},
        data={**rows_of(folder, task), "max_length": LONGEST},
        training={"epochs": 1, "batch_size": 8, "seed": seed, "learning_rate": rate, "backend": "fused"},
        validation={"steps": 100_000, "prompts": ()},
    )  # fmt: skip
    began = time.perf_counter()
    manifest = train(experiment, restart=True).manifest
    results = manifest.results
    assert results is not None and results.preference is not None, "the run is finished and has validation pairs"
    return {
        "kind": "cell", "cell": list(cell), "learning_rate": manifest.learning_rate, "backend": manifest.backend,
        "trained_pairs": manifest.data.training_sequences, "steps": results.steps,
        "loss_before": results.validation_loss_before, "loss_after": results.validation_loss_after,
        **results.preference.model_dump(), "peak_rss_bytes": results.peak_rss_bytes,
        "train_seconds": results.train_seconds, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def rows_of(folder: Path, task: str) -> dict[str, Any]:
    """Settings of the data; the pairs are written once."""
    data = Path(os.environ["RANKWISE_DATA"])
    if task == "oasst":
        file = folder / "oasst.jsonl"
        if not file.exists():
            write(file, ranked_pairs(data / "oasst" / "trees.jsonl"))
        return {"path": str(file), "held_out": TREES_APART, "group": "tree"}
    files = [folder / f"{task}-{part}.jsonl" for part in ("trained", "measured")]
    if not all(file.exists() for file in files):
        pairs = gold_pairs(data, task)
        write(files[0], pairs[:TRAINED])
        write(files[1], pairs[TRAINED:])
    return {"path": str(files[0]), "validation": str(files[1])}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def gold_pairs(data: Path, task: str) -> list[dict[str, Any]]:
    """The data set's answer over the base's own greedy one, up to its last whole sentence where it did not end."""
    lines = (data / task / FILES[task]).read_text(encoding="utf-8").splitlines()
    rows = [question_and_answer(task, json.loads(line)) for line in lines]
    rows = [(question, gold) for question, gold in rows if len(question) < 400 and len(gold) < 400]
    order = np.random.default_rng(0).permutation(len(rows))
    model, pairs = load(ModelConfig(name=MODEL), silent), list[dict[str, Any]]()
    spec = GenerationConfig(max_new_tokens=WRITTEN, repetition_check=False)
    for first in range(0, len(rows), 64):
        asked = [rows[at] for at in order[first : first + 64]]
        prompts = [asking_ids(model, [Message("user", question)]) for question, _ in asked]
        for (question, gold), answer in zip(asked, answers_in_turn(model, prompts, spec), strict=True):
            own = answer.text if answer.stopped == "end" else "".join(answer.text.rpartition(".")[:2])
            if own.strip() not in ("", gold.strip()):
                pairs.append({"prompt": question, "chosen": gold, "rejected": own})
        print(f"{task}: {len(pairs)} pairs", flush=True)
        if len(pairs) >= TRAINED + MEASURED:
            break
    return pairs[: TRAINED + MEASURED]


def question_and_answer(task: str, row: dict[str, Any]) -> tuple[str, str]:
    if task == "gsm8k":
        return row["question"], row["answer"]
    return (f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]), row["output"]


def ranked_pairs(file: Path) -> list[dict[str, Any]]:
    """Every two answers to one message that were ranked, the better one chosen, with the conversation before them, as
    far as these are short."""
    pairs: list[dict[str, Any]] = []

    def walk(tree: str, node: dict[str, Any], turns: list[dict[str, str]]) -> None:
        role = {"prompter": "user"}.get(node["role"], node["role"])
        here = [*turns, {"role": role, "content": node["text"]}]
        replies = node.get("replies") or []
        ranked = sorted((one for one in replies if isinstance(one.get("rank"), int)), key=lambda one: one["rank"])
        if role == "user":
            for at, better in enumerate(ranked):
                for worse in ranked[at + 1 :]:
                    answers = [{"role": "assistant", "content": one["text"]} for one in (better, worse)]
                    length = sum(len(turn["content"]) for turn in here) + max(len(better["text"]), len(worse["text"]))
                    if length < SHORT and better["text"].strip() != worse["text"].strip():
                        pairs.append({"tree": tree, "prompt": here, "chosen": answers[:1], "rejected": answers[1:]})
        for reply in replies:
            walk(tree, reply, here)

    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        walk(f"tree {number}", json.loads(line)["prompt"], [])
    return pairs


def table(done: dict[Any, dict[str, Any]]) -> Iterator[str]:
    yield "| pairs | loss | rate | held-out accuracy, by seed (95 %) | margin | KL from base | loss before -> after |"
    yield "|---|---|---:|---|---|---|---|"
    groups = dict.fromkeys((task, loss, rate) for task, loss, rate, _ in cells())
    for task, loss, rate in groups:
        rows = [done[task, loss, rate, seed] for seed in SEEDS if (task, loss, rate, seed) in done]
        if not rows:
            continue
        accuracies = ", ".join(
            f"{row['accuracy_after']['value']:.3f} ({row['accuracy_after']['low']:.3f} to "
            f"{row['accuracy_after']['high']:.3f})" for row in rows
        )  # fmt: skip
        margins, apart = ([row[name] for row in rows] for name in ("margin_after", "kl_from_base"))
        before, after = (statistics.mean(row[name] for row in rows) for name in ("loss_before", "loss_after"))
        yield (
            f"| {task} | {loss} | {rows[0]['learning_rate']:.2g}{' (auto)' if rate == 'auto' else ''} | {accuracies} | "
            f"{statistics.mean(margins):.3f} | {statistics.mean(apart):.3f} | {before:.3f} -> {after:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "preference.jsonl"
    if given.table:
        print("\n".join(table(done_in(log))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    run_missing(
        log, done_in(log), cells(), partial(alone, run, folder),
        lambda row: f"{row['accuracy_after']['value']:.3f}, KL {row['kl_from_base']:.3f}, {row['seconds']:.0f} s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
