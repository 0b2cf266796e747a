"""A plan held against what was measured: memory over fifteen trainings, of classifiers too, and time after a probe.

    python bench/plan.py [--json] [--classifiers | --images | --compiled | --quantized | --sequences] [--only 1,5,9]
                         [--time] [--rows 240]

Rows of Dolly; SmolLM2-135M, and a model of the shape of SmolLM2-360M with random weights. Each training is a
`rankwise train` of its own for three steps, whose peak is held against what `rankwise plan` says by config.json and a
sample of the rows; a method that learns everything is float32 always. The backend is named, because a training that
takes long on a busy machine is compiled by itself, which takes memory that no forecast has. A finished one is kept in
the cache folder and not run again.

--compiled: trainings with torch's compiler, which runs in the same process.

--classifiers: MiniLM, and SmolLM2-135M with a score head, on rows of GLUE; each training reads all its rows once.

--images: DINOv2-small and EfficientNet-Lite0 on images of CIFAR-10, enlarged to the size in the column "longest".

--quantized: bases in nf4 and int8, of texts, classifiers and images, with little at once.

--sequences: T5 and BART with random weights, which read a prompt of Dolly and write its answer.

--time: `rankwise plan --probe`, then a training of ten steps; the forecast of seconds against those it took.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from random_models import BART, RANDOM, SIDES, STARTER, T5, model_of
from telling import parser_of, tell

from rankwise.system.cache import cache_folder

FOLDER = cache_folder() / "bench-plan"
ENCODER, VISION, CONVOLUTIONS = "minilm", "dinov2-small", "efficientnet-lite0"


@dataclass(frozen=True)
class Case:
    model: str
    method: str
    dtype: str
    max_batch_tokens: int
    max_length: int
    recomputed: int | str = "auto"
    batch_size: int = 16
    plain: bool = False
    task: str | None = None
    """The folder of a task of GLUE, for a classifier."""
    compiled: bool = False
    images: bool = False
    """Whether rows are images, of `max_length` pixels a side."""
    quantize: str = "auto"

    @property
    def kind(self) -> str:
        """A part of the names under which results are stored."""
        return (
            "compiled-" * self.compiled
            + "classifier-" * (self.task is not None)
            + "images-" * self.images
            + "sequences-" * (self.model in SIDES)
            + (f"{self.quantize}-" * (self.quantize != "auto"))
        )

    @property
    def backend(self) -> str:
        if self.quantize != "auto" and (self.images or self.task):
            return "auto"
        whole = self.plain or self.task is not None or self.images or self.method == "full" or self.model in SIDES
        return "compiled" if self.compiled else "eager" if whole else "fused"

    @property
    def length(self) -> list[str]:
        """Three steps, or all rows once, so that the longest is among them."""
        whole = self.task is not None or self.images or self.model in SIDES
        return ["--epochs", "1"] if whole else ["--steps", "3"]


CASES = (
    Case(STARTER, "lora", "bfloat16", 2048, 512),
    Case(STARTER, "lora", "bfloat16", 1024, 256),
    Case(STARTER, "lora", "float32", 2048, 512),
    Case(STARTER, "lora", "bfloat16", 4096, 1024, 30, 32),
    Case(STARTER, "adalora", "bfloat16", 2048, 512),
    Case(STARTER, "adalora", "float32", 1024, 256, 15),
    Case(STARTER, "full", "float32", 2048, 512),
    Case(STARTER, "full", "float32", 1024, 256, 30),
    Case(RANDOM, "lora", "bfloat16", 2048, 512),
    Case(RANDOM, "adalora", "bfloat16", 4096, 1024, 32, 32),
    Case(RANDOM, "lora", "float32", 1024, 256),
    Case(RANDOM, "full", "float32", 512, 512, "auto", 4),
    Case(STARTER, "lora", "bfloat16", 2048, 512, plain=True),
    Case(STARTER, "full", "float32", 1536, 512, 15),
    Case(RANDOM, "lora", "bfloat16", 1024, 512, 16),
)
CLASSIFIERS = (
    Case(ENCODER, "lora", "float32", 2048, 512, task="RTE"),
    Case(ENCODER, "adalora", "float32", 2048, 512, task="RTE"),
    Case(ENCODER, "full", "float32", 2048, 512, task="RTE"),
    Case(ENCODER, "head", "float32", 2048, 512, task="RTE"),
    Case(ENCODER, "lora", "bfloat16", 4096, 512, batch_size=32, task="RTE"),
    Case(ENCODER, "full", "float32", 2048, 512, task="SST-2"),
    Case(STARTER, "lora", "bfloat16", 2048, 512, task="SST-2"),
    Case(ENCODER, "adalora", "bfloat16", 1024, 512, task="SST-2"),
    Case(ENCODER, "lora", "float32", 1024, 512, 3, task="RTE"),
    Case(STARTER, "lora", "float32", 1024, 512, 15, task="SST-2"),
    Case(STARTER, "head", "bfloat16", 2048, 512, task="SST-2"),
)
"""Numbers of the memory model were fitted to the first seven; the first, third and seventh are also timed."""
IMAGES = tuple(replace(case, images=True) for case in (
    Case(VISION, "lora", "float32", 2048, 112, batch_size=32),
    Case(VISION, "adalora", "float32", 2048, 112, batch_size=32),
    Case(VISION, "full", "float32", 2048, 112, batch_size=32),
    Case(VISION, "head", "float32", 2048, 112, batch_size=32),
    Case(VISION, "lora", "bfloat16", 2048, 224, batch_size=32),
    Case(VISION, "lora", "float32", 4096, 224, batch_size=32),
    Case(CONVOLUTIONS, "lora", "float32", 4096, 224),
    Case(CONVOLUTIONS, "full", "float32", 4096, 112, batch_size=64),
    Case(VISION, "adalora", "float32", 4096, 224, batch_size=32),
    Case(VISION, "full", "float32", 4096, 224, batch_size=32),
    Case(VISION, "lora", "float32", 4096, 112, 6, 64),
    Case(CONVOLUTIONS, "adalora", "float32", 4096, 112, batch_size=64),
    Case(CONVOLUTIONS, "lora", "bfloat16", 4096, 224),
    Case(VISION, "head", "bfloat16", 4096, 224, batch_size=32),
))  # fmt: skip
"""One number of the memory model was fitted to the first eight."""
COMPILED = (
    Case(STARTER, "lora", "bfloat16", 1024, 256, compiled=True),
    Case(STARTER, "adalora", "bfloat16", 2048, 512, compiled=True),
    Case(STARTER, "lora", "float32", 1024, 256, 15, compiled=True),
    Case(RANDOM, "lora", "bfloat16", 1024, 512, 16, compiled=True),
)
QUANTIZED = (
    Case(STARTER, "lora", "bfloat16", 512, 256, 0, 6, quantize="nf4"),
    Case(STARTER, "lora", "bfloat16", 512, 256, 30, 6, quantize="nf4"),
    Case(STARTER, "lora", "bfloat16", 1024, 512, 0, 8, quantize="nf4"),
    Case(STARTER, "lora", "bfloat16", 512, 256, 0, 6, quantize="int8"),
    Case(STARTER, "lora", "bfloat16", 1024, 512, 15, 8, quantize="int8"),
    Case(STARTER, "lora", "float32", 512, 256, 0, 6, quantize="nf4"),
    Case(ENCODER, "lora", "float32", 2048, 512, 0, task="RTE", quantize="int8"),
    Case(VISION, "lora", "float32", 2048, 112, 0, 32, images=True, quantize="nf4"),
)
SEQUENCES = (
    Case(T5, "lora", "float32", 2048, 512),
    Case(BART, "lora", "float32", 1024, 256),
    Case(T5, "full", "float32", 2048, 512),
    Case(BART, "full", "float32", 1024, 256),
    Case(T5, "lora", "bfloat16", 2048, 512),
    Case(BART, "adalora", "float32", 1024, 512, batch_size=8),
)
"""One number of the memory model was set by steps of both shapes, without a trainer."""
TEXTS = ("sentence", "sentence1", "sentence2")
UNSEEN = 3
"""The last ones: by none of them was anything of a plan fitted."""
TIMED = (CASES[0], CASES[4], CASES[7], CLASSIFIERS[0], CLASSIFIERS[2], CLASSIFIERS[6], *QUANTIZED)


def rows_of(case: Case, rows: int) -> list[str]:
    """The flags of the data. A classifier's rows have a file of their own, so that a plan sees no others."""
    folder = Path(os.environ["RANKWISE_DATA"])
    if case.images:
        return ["--data", str(folder / "cifar10" / "train.parquet"), "--set", f"data.rows={rows}"]
    if case.task is None:
        return ["--data", str(folder / "dolly" / "train.jsonl"), "--set", f"data.rows={rows}"]
    with (folder / "glue" / case.task / "train.tsv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:rows]
    made = FOLDER / f"{case.task}-{rows}.jsonl"
    kept = ({key: value for key, value in line.items() if key in (*TEXTS, "label")} for line in lines)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return ["--data", str(made), "--objective", "sequence-classification"]


def words_of(case: Case, rows: int, *more: str) -> list[str]:
    dtype = [] if case.method == "full" else ["--set", f"model.dtype={case.dtype}"]
    length = ["--image-size" if case.images else "--max-length", str(case.max_length)]
    return [
        "--model", model_of(case.model, FOLDER), *rows_of(case, rows), "--method", case.method, "--batch-size",
        str(case.batch_size), *length,
        "--set", f"training.max_batch_tokens={case.max_batch_tokens}",
        "--set", f"training.activation_checkpointing={case.recomputed}", *dtype,
        "--backend", case.backend, "--quantize", case.quantize, "--json", *more,
    ]  # fmt: skip


def trained(run: str, words: list[str]) -> dict[str, Any]:
    shutil.rmtree(FOLDER / "runs" / run, ignore_errors=True)
    return told("train", [*words, "--run", run])


def told(verb: str, words: list[str]) -> dict[str, Any]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", verb, *words], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def kept(name: str, make: Any) -> dict[str, Any]:
    file = FOLDER / "done" / f"{name}.json"
    if not file.is_file():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def memory(case: Case, number: int, rows: int) -> dict[str, Any]:
    run = f"memory-{case.kind}{number}"
    words = words_of(case, rows, *case.length)
    found = kept(run, lambda: trained(run, words))
    parts = told("plan", words)["memory_bytes"]
    return asdict(case) | {
        "number": number, "measured": found["peak_rss_bytes"], "forecast": parts["peak"],
        "off": parts["peak"] / found["peak_rss_bytes"] - 1, "parts": parts,
    }  # fmt: skip


def seconds(case: Case, number: int, rows: int) -> dict[str, Any]:
    run = f"time-{case.kind}{number}"
    planned = kept(f"{run}-plan", lambda: told("plan", words_of(case, rows, "--steps", "10", "--probe")))
    found = kept(run, lambda: trained(run, words_of(case, rows, "--steps", "10")))
    return asdict(case) | {
        "number": number, "measured": found["train_seconds"], "forecast": planned["seconds"],
        "off": planned["seconds"] / found["train_seconds"] - 1,
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    print("| model | method | format | stored | at once | longest | recomputed | forecast | measured | off |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        amounts = (
            f"{row[key] / 1e9:.2f} GB" if "parts" in row else f"{row[key]:.0f} s" for key in ("forecast", "measured")
        )
        cells = (
            row[key] for key in ("model", "method", "dtype", "quantize", "max_batch_tokens", "max_length", "recomputed")
        )
        print(f"| {' | '.join(map(str, (*cells, *amounts)))} | {row['off']:+.1%} |")
    off = [abs(row["off"]) for row in rows]
    lowest = min(row["off"] for row in rows)
    print(f"\nmedian {statistics.median(off):.1%}, worst {max(off):.1%}, lowest {lowest:+.1%}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--classifiers", action="store_true")
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--quantized", action="store_true")
    parser.add_argument("--sequences", action="store_true")
    asked = parser.parse_args()
    sets = {
        "classifiers": CLASSIFIERS,
        "images": IMAGES,
        "compiled": COMPILED,
        "quantized": QUANTIZED,
        "sequences": SEQUENCES,
    }
    cases = next((cases for name, cases in sets.items() if getattr(asked, name)), CASES)
    chosen = [int(one) for one in asked.only.split(",")] if asked.only else range(1, len(cases) + 1)
    rows = []
    for number in chosen:
        case = cases[number - 1]
        if not asked.time:
            rows.append(memory(case, number, asked.rows))
        elif case in TIMED:
            rows.append(seconds(case, number, asked.rows))
        else:
            continue
        print(f"{number}: {rows[-1]['off']:+.1%}", file=sys.stderr, flush=True)
    tell(asked, rows, show, {"rows": rows})


if __name__ == "__main__":
    main()
