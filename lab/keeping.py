"""What keeps a tuned model near its base, and what does it cost? Loss on unseen rows against divergence on other text.

    python lab/keeping.py FOLDER [--tasks e2e,dolly] [--ways plain,anchor] [--seeds 0,1,2]    run what is not done yet
    python lab/keeping.py FOLDER --table [--against WAY]                                    the table of what is done

SmolLM2-135M-Instruct (bfloat16 base) learns from the rows of lab/claims.py, in batches of 8 and one pass. Measured at
the end, and at lower strengths of the same adapter: the loss of an answer token on 80 rows that it never saw; and the
KL divergence from the base, in nats a token, on WikiText-2, on C headers of Python and on the German tutor of Vim,
none of which any anchor contains. Finished cells lie in FOLDER/keeping.jsonl.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from claims import data, tasks
from intruders import damped, intruders_of
from stored_cells import done_in, run_missing

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.errors import TrainingError, first_line
from rankwise.evaluation.forgetting import compared
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.subject import BaseAndTuned, base_and_tuned, of_two_models
from rankwise.evaluation.text import BETWEEN, PlainText, Text, cut
from rankwise.methods.lora import TrainableLoRA
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.registry import objective_named
from rankwise.rows.preparing import prepare
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent
from rankwise.system.memory import keep_memory
from rankwise.training.backend import Eager, Fused, choose_backend
from rankwise.training.extras.anchor import Anchor, BaseOnText, anchor_text
from rankwise.training.extras.replay import ReplayedRows
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Presentation, Workload, batches_of

ROWS = {"e2e": 200, "dolly": 200, "superbowl": 240, "gsm8k": 160}
RATES = {"lora": 2e-3, "adalora": 2e-3, "full": 1e-4}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "again": {},
    "anchor": {"training": {"anchor": {"weight": 1.0}}},
    "anchor-code": {
        "training": {"anchor": {"weight": 1.0, "code": True}},
        "strengths": (1.0, 0.9, 0.8, 0.79, 0.78, 0.77, 0.75, 0.5),
    },
    "anchor-0.3": {"training": {"anchor": {"weight": 0.3}}},
    "anchor-3": {"training": {"anchor": {"weight": 3.0}}},
    "anchor-256": {"training": {"anchor": {"weight": 1.0, "tokens": 256}}},
    "anchor-64": {"training": {"anchor": {"weight": 1.0, "tokens": 64}}},
    "replay": {"training": {"replay": {"share": 0.2}}},
    "replay-0.5": {"training": {"replay": {"share": 0.5}}},
    "half-rate": {"rate": 0.5},
    "quarter-rate": {"rate": 0.25},
    "anchor-half-rate": {"training": {"anchor": {"weight": 1.0}}, "rate": 0.5},
    "anchor-double-rate": {"training": {"anchor": {"weight": 1.0}}, "rate": 2.0},
    "mlp": {"adapter": {"targets": ["gate_proj", "up_proj", "down_proj"]}},
    "decay": {"training": {"weight_decay": 0.3}},
    "intruders": {"damped": True, "strengths": (1.0, 0.75, 0.5, 0.0)},
    "adalora": {"method": "adalora", "adapter": {"budget": "16"}},
    "adalora-anchor": {"method": "adalora", "adapter": {"budget": "16"}, "training": {"anchor": {"weight": 1.0}}},
    "full": {"method": "full"},
    "full-half-rate": {"method": "full", "rate": 0.5},
}
"""Each with what differs from LoRA of rank 16 at its usual rate. `again` is plain LoRA once more, on the machine of
`anchor-code`. An anchor of another text is `anchor:FILE`. The strengths of `damped` are what the singular values of
intruder dimensions are multiplied by (lab/intruders.py)."""
STRENGTHS = (1.0, 0.75, 0.5)
"""Of a way without its own; the lower ones with seed 0 alone. Stored cells of `anchor-code` lack some of its own."""
BLOCKS, LENGTH = 6, 512
GERMAN = Path("/usr/share/vim/vim91/tutor/tutor1.de.utf-8")
QUANTILES = {2: 12.706, 3: 4.303}
"""Of Student's t, 97.5 %, by the number of seeds."""
Cell = tuple[str, str, int]


def texts(model: LoadedModel) -> dict[str, Text]:
    """Those that the machine has."""
    headers = sorted(Path(sysconfig.get_paths()["include"]).glob("*.h"))
    sources = {
        "wikitext": [data("retention/wikitext-2/valid.txt")], "c-headers": headers,
        "german": [GERMAN] if GERMAN.exists() else [],
    }  # fmt: skip
    return {
        name: cut(
            PlainText(
                name, BETWEEN.join(file.read_text(encoding="utf-8", errors="replace") for file in files)[:400_000]
            ),
            model, blocks=BLOCKS, length=LENGTH,
        )
        for name, files in sources.items() if files
    }  # fmt: skip


def experiment_of(folder: Path, cell: Cell, run: str = "cell") -> Experiment:
    task, way, seed = cell
    (files,) = tasks(folder, [task])
    setting, text = setting_of(way), way.partition(":")[2]
    method = setting.get("method", "lora")
    training = {"epochs": 1, "batch_size": 8, "seed": seed, "learning_rate": RATES[method] * setting.get("rate", 1.0)}
    training |= setting.get("training", {})
    if text:
        training["anchor"] = training["anchor"] | {"text": text}
    return Experiment(
        model="smollm2-135m", run=run, adapter={"method": method} | setting.get("adapter", {}), training=training,
        data={"path": str(files.trained), "rows": ROWS[task], "max_length": 512, "validation": str(files.measured)},
    )  # fmt: skip


def run(folder: Path, cell: Cell, model: LoadedModel) -> dict[str, Any]:
    experiment = experiment_of(folder, cell)
    began, method = time.perf_counter(), method_of(experiment.adapter)
    if experiment.adapter.method == "full":
        model = load(experiment.base, silent)
    writing = TextWriting(model.tokenizer, model.template, model.source.name, None)
    prepared, replay = prepare(experiment.data, writing, silent), experiment.training.replay
    if replay is not None:
        prepared = ReplayedRows(replay, experiment.data, experiment.training).among(prepared, model, writing, silent)
    rows = prepared.rows_in_pass
    config = experiment.training.resolved(rows, model.width, experiment.auto_rate)
    tuned = method.attach(model, Setup(config, config.total_steps(rows), prepared.trained_rows, load=load))
    measured, seconds = dict[str, Any](), list[float]()
    try:
        tuned.train(False)
        work = Workload.of(tuned, objective_named("causal-lm"), config, prepared, Presentation(), silent)
        backend = choose_backend(work, "auto", 0)
        anchor = None
        if config.anchor is not None:
            assert isinstance(backend, Eager | Fused), "it is a language model"
            with tuned.base():
                text = anchor_text(config.anchor, model, config.steps or 1, silent)
            base = BaseOnText(text, tuned, backend, 10**9)
            anchor = Anchor(base, config.anchor.weight, config.seed, config.max_batch_tokens)
        trainer = Trainer(tuned, batches_of(prepared, config, backend.layout), config, backend, anchor=anchor)
        seconds = [record.seconds for record in trainer.run()]
        rows = list(prepared.measured_rows)
        whole = experiment.adapter.method == "full"
        sides = of_two_models(load(base_of(folder, cell[0]), silent), model) if whole else base_and_tuned(tuned)
        change = nullcontext if whole else changed_by(tuned, cell[1])
        for strength in setting_of(cell[1]).get("strengths", STRENGTHS[: 1 if whole or cell[2] else None]):
            with change(strength):
                apart = {name: divergence_of(sides, text) for name, text in texts(model).items()}
                measured[str(strength)] = {"rows": [one.sums for one in likelihoods(model.module, rows)], "kl": apart}
        failed = None
    except TrainingError as error:
        failed = first_line(error)
    finally:
        tuned.remove()
    return {
        "kind": "cell", "cell": list(cell), "measured": measured, "failed": failed, "steps": len(seconds),
        "step_seconds": statistics.median(seconds) if seconds else None, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def setting_of(way: str) -> dict[str, Any]:
    return WAYS[way.partition(":")[0]]


def changed_by(tuned: Trainable, way: str) -> Callable[[float], AbstractContextManager[None]]:
    if "damped" not in setting_of(way):
        return tuned.scaled
    assert isinstance(tuned, TrainableLoRA)
    return partial(damped, tuned.adapters, intruders_of(tuned.adapters))


def base_of(folder: Path, task: str) -> ModelConfig:
    return experiment_of(folder, (task, "plain", 0)).base


def divergence_of(sides: BaseAndTuned, text: Text) -> float:
    (blocks,) = compared(sides.base, [sides.tuned], text)
    return sum(block.kl for block in blocks) / sum(block.positions for block in blocks)


def loss_of(row: dict[str, Any], strength: str = "1.0") -> float:
    sums = row["measured"][strength]["rows"]
    return sum(nats for nats, _ in sums) / sum(count for _, count in sums)


def table(done: dict[Cell, dict[str, Any]], against: str = "plain") -> Iterator[str]:
    yield (
        "| rows | way | strength | loss | against plain (95 %) | KL on WikiText-2, C and German | as shares of plain's "
        "| step | seeds |"
    )
    yield "|---|---|---:|---:|---|---|---|---:|---:|"
    for task in ROWS:
        for way in dict.fromkeys(way for name, way, _ in done if name == task):
            seeds = [
                seed for name, other, seed in done if (name, other) == (task, way) and (task, against, seed) in done
            ]
            rows = [done[task, way, seed] for seed in sorted(seeds)]
            plain = [done[task, against, seed] for seed in sorted(seeds)]
            for strength in dict.fromkeys(name for row in rows for name in row["measured"]):
                pairs = [pair for pair in zip(rows, plain, strict=True) if strength in pair[0]["measured"]]
                yield line(task, way, strength, [one for one, _ in pairs], [other for _, other in pairs])


def line(task: str, way: str, strength: str, rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    apart = [loss_of(one, strength) - loss_of(other) for one, other in zip(rows, plain, strict=True)]
    mean = statistics.mean(apart)
    half = (
        QUANTILES.get(len(apart), math.nan) * statistics.stdev(apart) / len(apart) ** 0.5
        if len(apart) > 1
        else math.nan
    )
    interval = "" if math.isnan(half) else f" ({mean - half:+.4f} to {mean + half:+.4f})"
    kls, shares = [], []
    for text in rows[0]["measured"][strength]["kl"]:
        kl, whole = (
            statistics.mean(one["measured"][at]["kl"][text] for one in group)
            for group, at in ((rows, strength), (plain, "1.0"))
        )
        kls.append(f"{kl:.4f}")
        shares.append(f"{kl / whole:.2f}")
    steps = statistics.mean(one["step_seconds"] / other["step_seconds"] for one, other in zip(rows, plain, strict=True))
    loss = statistics.mean(loss_of(one, strength) for one in rows)
    return (
        f"| {task} | {way} | {strength} | {loss:.4f} | {mean:+.4f}{interval} | {', '.join(kls)} | {', '.join(shares)} "
        f"| {steps:.2f} | {len(rows)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(ROWS))
    parser.add_argument("--ways", default="plain,anchor")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--against", default="plain", help="the way that the table compares with")
    given = parser.parse_args()
    folder = given.folder.absolute()
    log = folder / "keeping.jsonl"
    if given.table:
        print("\n".join(table(done_in(log), given.against)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    keep_memory()
    names, ways, seeds = (getattr(given, name).split(",") for name in ("tasks", "ways", "seeds"))
    done, model = done_in(log), load(base_of(folder, names[0]), silent)
    chosen = ((task, way, int(seed)) for seed in seeds for task in names for way in ways)
    run_missing(log, done, chosen, lambda cell: run(folder, cell, model), told)


def told(row: dict[str, Any]) -> str:
    if row["failed"] is not None:
        return row["failed"]
    return (
        f"{loss_of(row):.4f} {row['measured']['1.0']['kl']} {row['step_seconds']:.1f} s a step, {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
