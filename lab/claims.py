"""What LoRA is famous for, measured: every claim ends as "holds", "does not hold" or "cannot tell".

    python lab/claims.py FOLDER --quick            the demo's rows; a quarter of an hour on two cores
    python lab/claims.py FOLDER [--minutes M]      four public sets; runs what is not finished, for at most M minutes
    python lab/claims.py FOLDER --only dolly,e2e   two of these sets; lines of several cells.jsonl may be joined
    python lab/claims.py FOLDER --table            the table of what is finished

The full mode has three seeds, and for each method the best rate of up to five. It trains on Dolly, E2E, GSM8K and
superbowl_facts (from the folder RANKWISE_DATA) and measures on other rows of them: E2E's have meanings that training
never saw, superbowl_facts' repeat questions of training with other answers. Self-Instruct's seed tasks are the
instructions of another source. Adapters have rank 16 on all linear layers. FOLDER/cells.jsonl keeps finished cells.
The model is SmolLM2-135M unless --model names another.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from claims_records import Claim, Claims
from claims_runs import ClaimTask
from claims_study import QUICK, Plan, claims

from rankwise.runs.records import Event, StatusMessage
from rankwise.system.memory import keep_memory

Rows = list[tuple[str, str]]
OUTSIDE = 40
MEASURED = {"e2e": 80, "dolly": 80, "superbowl": 80, "gsm8k": 80, "sst2": 400}
TRAINED = {"e2e": 200, "dolly": 96, "superbowl": 120, "gsm8k": 64}
PLAN = Plan(
    rates={"lora": (1e-3, 2e-3, 4e-3), "adalora": (4e-3, 8e-3), "full": (1e-4, 2e-4)},
    seeds=(0, 1, 2),
    rows=TRAINED,
    small=(("e2e", 50), ("e2e", 200), ("e2e", 800)),
)
HERE = Path(__file__).parent


def data(name: str) -> Path:
    return Path(os.environ["RANKWISE_DATA"]) / name


def lines(name: str) -> list[dict[str, Any]]:
    with data(name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def shuffled(rows: Rows, seed: int) -> Rows:
    random.Random(seed).shuffle(rows)
    return rows


def shorter(rows: Rows, characters: int) -> Rows:
    return [row for row in rows if len(row[0]) + len(row[1]) < characters]


def e2e() -> tuple[Rows, Rows]:
    """Measured is one text for each of a quarter of the meanings."""
    with data("e2e/devset.csv").open(encoding="utf-8") as file:
        rows = [(row["mr"], row["ref"]) for row in csv.DictReader(file)]
    shuffled(rows, 1)
    meanings = sorted({meaning for meaning, _ in rows})
    random.Random(0).shuffle(meanings)
    apart = set(meanings[: len(meanings) // 4])
    return [row for row in rows if row[0] not in apart], list({row[0]: row for row in rows if row[0] in apart}.values())


def dolly() -> tuple[Rows, Rows]:
    rows = [(row["prompt"], row["response"]) for row in lines("dolly/train.jsonl")]
    rows = shuffled(shorter(rows, 1000), 2)
    return rows[MEASURED["dolly"] :], rows


def gsm8k() -> tuple[Rows, Rows]:
    trained, measured = (
        shuffled(shorter([(row["question"], row["answer"]) for row in lines(f"gsm8k/{name}.jsonl")], 500), 3)
        for name in ("train", "test")
    )
    return trained, measured


def superbowl() -> tuple[Rows, Rows]:
    rows = [(row["prompt"], row["completion"])
            for name in ("train", "valid") for row in lines(f"superbowl_facts/{name}.jsonl")]  # fmt: skip
    rows = shuffled(list(dict.fromkeys(shorter(rows, 600))), 4)
    return rows[MEASURED["superbowl"] :], rows


def sst2() -> tuple[Rows, Rows]:
    """The sentiment of a sentence as a word."""
    trained, measured = (
        [(f"{sentence.strip()}\nIs this positive or negative?", ("negative", "positive")[int(label)])
         for sentence, _, label in (line.rstrip("\n").partition("\t")
                                    for line in data(f"glue/SST-2/{name}.tsv").read_text("utf-8").splitlines()[1:])]
        for name in ("train", "dev")
    )  # fmt: skip
    return shuffled(trained, 6), shuffled(measured, 6)


def outside() -> Rows:
    """Of tasks with an answer of some length."""
    made = []
    for task in lines("self_instruct/seed_tasks.jsonl"):
        instance = task["instances"][0]
        asked = "\n\n".join(filter(None, (task["instruction"], instance["input"])))
        if 20 <= len(instance["output"]) and len(asked) + len(instance["output"]) < 1500:
            made.append((asked, instance["output"]))
    return shuffled(made, 5)[:OUTSIDE]


def written(folder: Path, name: str, rows: Rows) -> Path:
    file = folder / f"{name}.jsonl"
    text = "".join(json.dumps({"prompt": asked, "completion": said}) + "\n" for asked, said in rows)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
    return file


SETS = {"e2e": e2e, "dolly": dolly, "superbowl": superbowl, "gsm8k": gsm8k, "sst2": sst2}


def tasks(folder: Path, names: list[str]) -> list[ClaimTask]:
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = written(folder, "outside", outside())
    made = []
    for name in names:
        trained, measured = SETS[name]()
        files = (
            written(folder, f"{name}-trained", trained[:800]),
            written(folder, f"{name}-measured", measured[: MEASURED[name]]),
        )
        made.append(ClaimTask(name, *files, outside=elsewhere if name == "dolly" else None))
    return made


def heard(event: Event) -> None:
    if isinstance(event, StatusMessage):
        print(event.text, flush=True)


def table(told: Claims) -> str:
    rows = [f"| {claim.claim} | **{claim.answer}** | {_value(claim)} | {claim.wanted} | {claim.seeds} × {claim.n} |"
            for claim in told.claims]  # fmt: skip
    return "\n".join(
        ["| claim | answer | measured (95 %) | holds if | seeds × items |", "|---|---|---|---|---|", *rows]
    )


def _value(claim: Claim) -> str:
    if claim.value is None:
        return claim.why or ""
    interval = "" if claim.low is None else f" ({claim.low:.4g} to {claim.high:.4g})"
    return f"{claim.value:.4g}{interval}{', ' + claim.why if claim.why else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m", help="starter name, hub id, folder or .gguf file")
    parser.add_argument("--minutes", type=float, help="start no measurement after this many minutes")
    parser.add_argument("--only", default=",".join(TRAINED), help="names of data sets, separated by commas")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="measure on the demo's rows only")
    mode.add_argument("--table", action="store_true", help="print the table of what is finished")
    options = parser.parse_args()
    keep_memory()
    minutes = 0.0 if options.table else options.minutes
    if options.quick:
        print(table(claims(options.folder, options.model, plan=QUICK, minutes=minutes, callback=heard)))
        return
    names = options.only.split(",")
    plan = replace(PLAN, small=[(name, rows) for name, rows in PLAN.small if name in names])
    measured = claims(
        options.folder, options.model, tasks=tasks(options.folder, names), plan=plan, mode="full", minutes=minutes,
        callback=heard,
    )  # fmt: skip
    print(table(measured))


if __name__ == "__main__":
    main()
