"""Six classifiers as ONNX, each answering twenty held-out rows in onnxruntime and in transformers.js under node.

    python bench/onnx_arrival.py --out bench/results/onnx-DATE [--engine-python PATH …] [--work FOLDER]

The models are starters, trained for a few steps with LoRA. Over MiniLM: messages to a help desk get a class, texts
about restaurants several labels (E2E), pairs of sentences a number (STS-B), and words of texts about restaurants tags
(E2E). Over DINOv2-small and EfficientNet-Lite0: photographs of 32 x 32 pixels get a class (CIFAR-10). The data sets lie
at RANKWISE_DATA, and runs that are in FOLDER already are not trained again.

Faults are then planted into two exports, which every engine must find: a tokenizer that keeps capitals, and an image
model whose mean and standard deviation are swapped in the graph, or which transformers.js is told to give blue before
red (onnxruntime reads no such file, so that its verdict stays right).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rankwise.commands.export import export
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.errors import ExportError
from rankwise.exporting.verification import Export, Verification, Verifying, verify
from rankwise.methods.artifact import open_artifact
from rankwise.objectives.image_classification.head import ImageHead
from rankwise.rows.samples import tickets
from rankwise.runs.records import silent

DATA = Path(os.environ.get("RANKWISE_DATA", "../shared/data")).resolve()
HELD_OUT, EACH = 20, 20
"""Rows that every model is asked, and images of each class to train on."""
VALUE = re.compile(r"(\w[\w ]*)\[(.*?)\]")


def help_desk() -> list[dict[str, Any]]:
    return [{"text": row["message"], "label": row["queue"]} for row in tickets(slice(None))]


def restaurants() -> list[tuple[dict[str, str], str]]:
    """What is said of a restaurant, and the text that says it."""
    with (DATA / "e2e" / "devset.csv").open(encoding="utf-8", newline="") as file:
        return [(dict(VALUE.findall(row["mr"])), row["ref"]) for row in list(csv.DictReader(file))[::10]]


def several() -> list[dict[str, Any]]:
    return [{"text": text, "label": sorted(facts.keys() - {"name"})} for facts, text in restaurants()]


def names() -> list[dict[str, Any]]:
    rows = []
    for facts, text in restaurants():
        spans = [
            {"start": at, "end": at + len(value), "label": label}
            for name, label in (("name", "NAME"), ("area", "AREA"))
            if (value := facts.get(name)) and (at := text.find(value)) >= 0
        ]
        rows.append({"text": text, "spans": spans})
    return rows


def alike() -> list[dict[str, Any]]:
    with (DATA / "glue" / "STS-B" / "train.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"text": row["sentence1"], "text_pair": row["sentence2"], "label": float(row["score"])} for row in rows]


@dataclass(frozen=True)
class Case:
    base: str
    rows: Callable[[], list[dict[str, Any]]] | None = None
    """None for photographs, which lie in folders of their classes."""
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    "tickets": Case("minilm", help_desk),
    "several": Case("minilm", several),
    "number": Case("minilm", alike),
    "tags": Case("minilm", names),
    "dinov2": Case("dinov2-small", more={"images": {"size": 112}}),
    "lite0": Case("efficientnet-lite0", more={"images": {"size": 112}}),
}


HEAD = "| model | base | bytes | engine | answers equal | largest difference | ms an answer | verdict |"


def trained(name: str, case: Case) -> None:
    if Path("runs", name, "manifest.json").is_file():
        return
    rows = Path("photographs")
    if case.rows is not None:
        rows = Path(f"{name}.jsonl")
        rows.write_text("".join(json.dumps(row) + "\n" for row in case.rows()), encoding="utf-8")
    elif not rows.is_dir():
        for kind in sorted((DATA / "cifar10" / "imagefolder" / "train").iterdir()):
            shutil.copytree(kind, rows / kind.name, ignore=lambda _, files: sorted(files)[EACH:])
    train(Experiment(
        model=case.base, data={"sources": (str(rows),), "held_out": HELD_OUT}, run=name,
        training={"steps": 20, "batch_size": 16, "learning_rate": 1e-3}, **case.more,
    ))  # fmt: skip


def exported(name: str, how: Verifying) -> tuple[int, Verification]:
    """The bytes of the graph, and what the engines said of it."""
    shutil.rmtree(Path("onnx", name), ignore_errors=True)
    written = export(name, Path("onnx", name), "onnx", verifying=how)
    return written.bytes, written.verification


def changed(name: str, file: str, change: dict[str, Any]) -> Path:
    """A copy of an export in which a file of JSON says something else."""
    folder = Path("onnx", f"{name}-changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path("onnx", name), folder)
    settings = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(settings | change), encoding="utf-8")
    return folder


def judged(name: str, folder: Path, how: Verifying) -> dict[str, Any]:
    verdicts = verify(open_artifact(name), Export(str(folder.absolute()), "onnx"), how, silent).verdicts
    return {one.engine: {"status": one.status, "why": one.why} for one in verdicts}


def faults(how: Verifying) -> dict[str, Any]:
    """What each engine says of exports whose preprocessing is another."""
    cased = {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                            "strip_accents": False, "lowercase": False}}  # fmt: skip
    found = {
        "capitals are kept": judged("several", changed("several", "tokenizer.json", cased), how),
        "blue before red": judged(
            "dinov2", changed("dinov2", "preprocessor_config.json", {"do_flip_channel_order": True}), how
        ),
    }
    graph = ImageHead.graph

    def swapped(self: ImageHead, *arguments: Any) -> Any:
        own = self.loss.processing
        loss = replace(self.loss, processing=own.model_copy(update={"mean": own.std, "std": own.mean}))
        return graph(replace(self, loss=loss), *arguments)

    ImageHead.graph = swapped
    try:
        exported("dinov2", how)
        found["mean and deviation swapped"] = {"every engine": {"status": "right", "why": None}}
    except ExportError as error:
        found["mean and deviation swapped"] = {"every engine": {"status": "wrong", "why": " ".join(str(error).split())}}
    finally:
        ImageHead.graph = graph
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/onnx"))
    parser.add_argument("--engine-python", action="append", default=[])
    options = parser.parse_args()
    out, how = options.out.absolute(), Verifying("yes", [Path(one).absolute() for one in options.engine_python])
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(options.work)
    results, lines = {}, [HEAD, "|---|---|---|---|---|---|---|---|"]
    for name, case in CASES.items():
        trained(name, case)
        size, said = exported(name, how)
        results[name] = {"base": case.base, "bytes": size, **said.summary()}
        for one in said.verdicts:
            figures = one.figures
            row = (
                f"{figures.answers_equal} of {figures.questions} | {figures.max_difference:.2g} | "
                f"{figures.milliseconds:.3g}"
                if figures
                else " | | "
            )
            lines.append(f"| {name} | {case.base} | {size:,} | {one.engine} {one.version} | {row} | {one.status} |")
        print(lines[-1], flush=True)
    planted = faults(how)
    lines += ["", "| fault | engine | verdict | why |", "|---|---|---|---|"]
    for fault, engines in planted.items():
        lines += [f"| {fault} | {name} | {one['status']} | {one['why'] or ''} |" for name, one in engines.items()]
    machine = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}"
    title = f"# Classifiers in onnxruntime and in transformers.js\n\n`python bench/onnx_arrival.py` on {machine}.\n\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine, "models": results, "faults": planted}
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(title + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
