"""Runs as their files would be, with every part that a report has, made in a moment and without a model."""

from __future__ import annotations

import json
import math

from rankwise.config.experiment import Experiment
from rankwise.evaluation.intervals import difference, scores
from rankwise.evaluation.metrics import METRICS
from rankwise.runs.data_report import DataReport, LengthFacts, OverlapFacts, PartFacts, Skipped, TemplateFacts
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import (
    Evaluation,
    Forgetting,
    ModelScores,
    Sample,
    StrengthCurve,
    StrengthPoint,
    evaluation_path,
    write_evaluation,
    write_strength,
)
from rankwise.runs.manifest import BaseModelFacts, DataFacts, Manifest, Results, Resumed
from rankwise.runs.measured import CalibrationBin, ClassDetails, Measurement, OneClass, WrongRow
from rankwise.runs.records import LossRecord, RankRecord, SampleRecord, ScoreRecord, StepRecord

VERSIONS = {"python": "3.11.7", "rankwise": "0.1.0", "torch": "2.13.0"}
MACHINE = {"system": "Linux", "processor": "some", "cores": 2, "memory_bytes": 8_000_000_000}
MADE = "2026-01-02T03:04:05+00:00"


def plain(where):
    """Each text is the name of its place; what stands in a base model's stead is that model."""
    return "model" if where == "against" else where


def made_run(
    name="r", *, said=plain, steps=24, status="finished", held_out=True, evaluated=True, during=True, method="adalora",
    data_report=True, better=0.6, fingerprint="f00d", text_sha256="ab" * 32, items="a" * 64, path="rows.jsonl",
    tracking=None, kept=None, pictures=False,
):  # fmt: skip
    """In `runs/NAME` of the working folder. `said` gives each text that somebody else could have written."""
    run = RunDirectory.named(name)
    run.folder.mkdir(parents=True)
    adapter = {"method": method} | ({"rank": 8, "rank_pattern": {said("target"): 3}} if method == "lora" else {})
    experiment = Experiment(
        model=said("model"), run="r", adapter=adapter,
        validation=tracking or {},
        data={"path": path, "system": said("system"), "columns": {"prompt": said("column")}}
        | ({"held_out": 10} if tracking else {}),
    )  # fmt: skip
    (run.folder / "config.json").write_text(json.dumps(experiment.model_dump(mode="json")))
    run.write_manifest(manifest(said, status, steps, held_out, fingerprint, path))
    if data_report:
        run.write("data_report.json", data_report_of(said).model_dump(mode="json"))
    write_metrics_log(run, said, steps, held_out, method, during)
    if evaluated:
        evaluation = evaluation_of(run, said, better, text_sha256, items, kept=kept, pictures=pictures)
        write_evaluation(evaluation_path(run, "task"), evaluation)
        write_strength(run, strength(said))
    return run


def manifest(said, status, steps, held_out, fingerprint, path):
    return Manifest(
        status=status, started=MADE, ended=None if status == "running" else MADE,
        command=["rankwise", "train", said("argument")], versions=VERSIONS | {said("package"): said("version")},
        machine=MACHINE | {"processor": said("processor")},
        base_model=BaseModelFacts(
            name=said("model"), source=said("source"), fingerprint=fingerprint, dtype="bfloat16", device="cpu"
        ),
        data=DataFacts(
            path=path, sha256="0" * 64, format="prompt", rows=40, training_sequences=30, validation_sequences=10,
            rows_too_long=0, tokens=900, loss_tokens=300,
        ),
        learning_rate=1e-3,
        results=results(steps, held_out) if status == "finished" else None,
        problem=said("problem") if status == "failed" else None,
        resumed=(Resumed(step=3, at=MADE, versions=VERSIONS, machine=MACHINE),),
    )  # fmt: skip


def results(steps, held_out):
    return Results(
        steps=steps, loss=0.5, validation_loss_before=2.0 if held_out else None,
        validation_loss_after=0.7 if held_out else None, validation_loss_tokens=99 if held_out else None,
        train_seconds=75.0, tokens_per_second=480.0, peak_rss_bytes=1_500_000_000, trainable_parameters=1_200_000,
        total_parameters=134_515_008, adapter_bytes=4_900_000,
    )  # fmt: skip


def data_report_of(said):
    return DataReport(
        format="prompt", model="m", rows=40, used=39, skipped=1, skipped_why={said("why"): 1},
        files=(PartFacts(name=said("file"), sha256="1" * 64, format="prompt", rows=40, licence=said("licence")),),
        skipped_rows=(Skipped(where=said("where"), why=said("why")),), validation_rows=10, sequences=39, tokens=900,
        loss_tokens=300, eos_in_loss=39, truncated=0, without_loss_tokens=0,
        lengths=LengthFacts(median=20, p90=30, p99=40, longest=41, suggested_max_length=64), masks={"prefix": 39},
        template_parity=True, template_parity_broken=0, duplicates=0, near_duplicates=1,
        overlap=OverlapFacts(exact=1, near=0, of=10), double_start=0, control_tokens_as_text=0,
        unknown_special_tokens={}, replacement_characters=0, licence=said("licence"), system=said("system"),
        recipe=None,
        template=TemplateFacts(kind="model", sources={"default": said("template")}, sha256="0", ends=("e",), start=""),
        warnings=(said("warning"),), fatal=(),
    )  # fmt: skip


def write_metrics_log(run, said, steps, held_out, method, during):
    rows = [LossRecord(0, 2.0, 99, 10)] if held_out else []
    layers = [f"model.layers.{block}.{kind}" for block in range(3) for kind in ("self_attn.q_proj", said("layer"))]
    for step in range(1, steps + 1):
        rows.append(StepRecord(
            step, steps, step / 10, 2 * math.exp(-step / 9), 1e-3 * (1 - step / steps), 0.4, 500, 170, 1.5, 10**9
        ))  # fmt: skip
        if method == "adalora" and step % 4 == 0:
            ranks = {layer: (place + step) % 7 for place, layer in enumerate(layers)}
            rows.append(RankRecord(step, 40 - step, 40, ranks, step >= 12))
        if during and step in (1, steps):
            rows += [ScoreRecord(step, said("metric"), step / steps, 10)]
            rows += [SampleRecord(step, said("prompt"), said("target"), said("answer"))]
    rows += [LossRecord(steps, 0.7, 99, 10)] if held_out else []
    lines = [json.dumps(row.as_row()) + "\n" for row in rows]
    run.metrics.write_text("".join(lines))


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Er"
    "kJggg=="
)


def details_of(said, pictures):
    """Two classes of which each is once taken for the other."""
    measured = Measurement(value=0.9, low=0.8, high=0.95)
    classes = [
        OneClass(name=said(name), rows=20, predicted=20, precision=measured, recall=measured, f1=measured)
        for name in ("class", "other class")
    ]
    wrong = WrongRow(
        name=said("row"), actual=said("class"), predicted=said("other class"), probability=0.97,
        probability_of_actual=0.03, **({"thumbnail": PIXEL} if pictures else {"text": said("text of a row")}),
    )  # fmt: skip
    bins = [CalibrationBin(low=0.8, high=0.9, rows=30, confidence=0.85, right=measured)]
    return ClassDetails(classes=classes, confusion=[(0, 0, 19), (0, 1, 1), (1, 0, 1), (1, 1, 19)], calibration=bins,
                        calibrated_error=0.05, wrong_rows=2, wrong=[wrong, wrong])  # fmt: skip


def evaluation_of(run, said, better, text_sha256, items, n=40, kept=None, pictures=False):
    metric = said("exact")
    base = [[float(item % 5 == 0), 1.0] for item in range(n)]
    tuned = [[float(item < better * n), 1.0] for item in range(n)]
    return Evaluation(
        task=said("task"), n=n, items_sha256=items, data=said("items"), model=run.folder.name, against=said("against"),
        tuned=ModelScores(
            scores={metric: scores("exact", tuned), said("key"): scores("exact", tuned)}, seconds=3.0,
            classification=details_of(said, pictures),
        ),
        base=ModelScores(scores={metric: scores("exact", base), said("key"): scores("exact", base)}, seconds=2.0),
        differences={metric: difference(METRICS["exact"], base, tuned)},
        forgetting=Forgetting(
            kl=0.02, low=0.017, high=0.024, delta_nll=0.005, delta_nll_low=-0.001, delta_nll_high=0.01,
            agreement=0.96, text=said("text"), sha256=text_sha256, blocks=16, positions=8000, **(kept or {}),
        ),
        samples=[Sample(prompt=said("prompt"), target=said("target"), base=said("before"), tuned=said("after"))],
        created=MADE, versions=VERSIONS, settings={said("setting"): said("value")},
    )  # fmt: skip


def strength(said):
    def around(value):
        return Measurement(value=value, low=0.9 * value, high=1.1 * value)

    points = [
        StrengthPoint(strength=s / 4, loss=around(2.0 / (1 + s)), kl=around(0.004 * s), delta_nll=0.001 * s)
        for s in range(6)
    ]
    return StrengthCurve(
        task=said("task"), n=40, text=said("text"), sha256="ab" * 32, points=points, recommended=0.75, created=MADE
    )
