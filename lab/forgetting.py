"""What the claims leave out, for the record: WikiText-2, a text that is no English, a run with replay, and answers.

    python lab/forgetting.py FOLDER [--seeds 0,1,2]    run what is not done yet
    python lab/forgetting.py FOLDER --table            the tables of what is done

The rows of E2E that lab/claims.py trains on and measures with, each method at its best rate there. Forgetting is
measured on three texts that no run has seen: the documentation of Python, WikiText-2's validation part, and source code
of Python's own library. `replay` is LoRA with rows of Dolly mixed in, one to four of E2E; `none` is the model against
itself, whose KL has to be exactly 0. Answers are written to the questions that the loss is of. Finished cells lie in
FOLDER/forgetting.jsonl.
"""

from __future__ import annotations

import argparse
import inspect
import os
import statistics
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims import MEASURED, TRAINED, Rows, data, dolly, e2e, shuffled, written

from rankwise.commands.evaluate import asked_of, evaluated
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.config.tasks import TaskConfig
from rankwise.evaluation.forgetting import forgetting
from rankwise.evaluation.subject import open_subject
from rankwise.evaluation.text import text_for
from rankwise.runs.metrics_log import MetricsLog, read_metrics_log
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory

MODEL = "smollm2-135m"
RUNS = {"none": 0.0, "lora": 2e-3, "replay": 2e-3, "adalora": 8e-3, "full": 2e-4}
"""With the best rates of lab/claims.md for 200 rows of E2E."""
BLOCKS, LENGTH = 16, 512
KEPT = {"KL": ("kl", "low", "high"), "change of NLL": ("delta_nll", "delta_nll_low", "delta_nll_high")}
SCORES = ("rouge_l", "bleu", "chrf")
TASK = {"task": "e2e", "score": ("loss", *SCORES), "max_new_tokens": 96}


def files(folder: Path) -> dict[str, Path]:
    trained, measured = e2e()
    learned = trained[: TRAINED["e2e"]]
    again: Rows = dolly()[0][: len(learned) // 4]
    code = folder / "code.txt"
    code.write_text("\n".join(inspect.getsource(module) for module in (argparse, typing, statistics)), encoding="utf-8")
    return {
        "learned": written(folder, "learned", learned),
        "replayed": written(folder, "replayed", shuffled([*learned, *again], 6)),
        "measured": written(folder, "measured", measured[: MEASURED["e2e"]]),
        "code": code,
    }


def experiment(name: str, seed: int, made: dict[str, Path]) -> Experiment:
    replay = name == "replay"
    return Experiment(
        model={"name": MODEL, "dtype": "float32"}, run=f"{name}-{seed}",
        adapter={"method": "lora" if replay else name},
        data={"path": str(made["replayed" if replay else "learned"]), "max_length": 512},
        training={"epochs": 1, "batch_size": 8, "seed": seed, "learning_rate": RUNS[name]},
    )  # fmt: skip


def cell(name: str, seed: int, made: dict[str, Path]) -> dict[str, Any]:
    if name == "none":
        subject = open_subject(MODEL, MODEL)
    else:
        train(experiment(name, seed, made), restart=True)
        subject = open_subject(f"{name}-{seed}")
    assert subject.sides is not None
    wikitext = data("retention/wikitext-2/valid.txt")
    texts = {"documentation": None, "wikitext-2": str(wikitext), "code": str(made["code"])}
    kept = {
        text: forgetting(subject.sides, text_for(subject.model, source, blocks=BLOCKS, length=LENGTH), silent)
        for text, source in texts.items()
    }
    task = TaskConfig(data=str(made["measured"]), **TASK)
    found = evaluated(subject, asked_of(subject, task, None, None, 16, silent), out=made["code"].with_name("last.json"))
    return {
        "metrics": found.summary()["metrics"],
        "base": found.summary()["base"],
        "texts": {text: one.model_dump(mode="json") | {"text": text} for text, one in kept.items()},
    }


def run(folder: Path, seeds: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made, file = {name: path.resolve() for name, path in files(folder).items()}, (folder / "forgetting.jsonl").resolve()
    os.chdir(folder)
    done = [(row["run"], row["seed"]) for row in (read_metrics_log(file) if file.exists() else [])]
    for seed in seeds:
        for name in RUNS:
            if (name, seed) not in done and (name != "none" or seed == seeds[0]):
                result = cell(name, seed, made)
                with MetricsLog(file) as metrics_log:
                    metrics_log.append({"run": name, "seed": seed, "rate": RUNS[name], **result})
                print(f"{name}, seed {seed}: loss {result['metrics']['loss']['value']:.4f}", flush=True)


def around(one: dict[str, float], *keys: str) -> str:
    value, low, high = (one[key] for key in keys or ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def table(folder: Path) -> str:
    rows = read_metrics_log(folder / "forgetting.jsonl")
    texts = list(rows[0]["texts"])
    told = ["| run | seed | rate | loss | ROUGE-L | BLEU | chrF |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        scored = " | ".join(f"{row['metrics'][name]['value']:.3g}" for name in SCORES)
        told.append(f"| {row['run']} | {row['seed']} | {row['rate']:g} | {around(row['metrics']['loss'])} | {scored} |")
    for what, keys in KEPT.items():
        told += ["", f"| run | seed | {' | '.join(f'{what}, {text}' for text in texts)} |",
                 f"|---|---|{'---|' * len(texts)}"]  # fmt: skip
        told += [f"| {row['run']} | {row['seed']} | {' | '.join(around(row['texts'][text], *keys) for text in texts)} |"
                 for row in rows]  # fmt: skip
    return "\n".join([*told, *means(rows, texts)])


def means(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[str]:
    """Over seeds, and KL as a share of LoRA's."""
    told = ["", f"| mean of seeds | loss | {' | '.join(f'KL, {text} (of LoRA)' for text in texts)} |",
            f"|---|---|{'---|' * len(texts)}"]  # fmt: skip
    of = {name: [row for row in rows if row["run"] == name] for name in RUNS}
    kl = {name: [statistics.mean(row["texts"][text]["kl"] for row in own) for text in texts]
          for name, own in of.items() if own}  # fmt: skip
    for name, found in kl.items():
        loss = statistics.mean(row["metrics"]["loss"]["value"] for row in of[name])
        each = [f"{one:.3f} ({one / lora:.2f})" for one, lora in zip(found, kl["lora"], strict=True)]
        told.append(f"| {name} | {loss:.3f} | {' | '.join(each)} |")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    keep_memory()
    if not options.table:
        run(options.folder, [int(seed) for seed in options.seeds.split(",")])
    print(table(options.folder))


if __name__ == "__main__":
    main()
