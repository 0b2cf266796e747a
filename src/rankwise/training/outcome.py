"""What a training is, in figures and words, before its first step and after its last."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from rankwise.planning.forecast import Disk
from rankwise.rows.preparation import Prepared
from rankwise.runs.data_report import about, lines_of
from rankwise.runs.manifest import DataFacts, Results, peak_rss
from rankwise.runs.records import LossRecord, ScoreRecord, StepRecord
from rankwise.training.pairs import pair_results
from rankwise.training.training import Training
from rankwise.training.validation import Validation
from rankwise.training.validation_classes import baselines, never_predicted, still_falling


def bytes_written(training: Training, state: int) -> int:
    """At most, without logs and reports; `state` is the size of a checkpoint."""
    return Disk.of(training.trained_parameters, state, training.config, training.validation, training.steps).total


def described(training: Training, about_extras: Sequence[str]) -> str:
    report, facts, trainable = training.prepared.data_report, training.model.facts, training.trainable
    data, interval = data_facts(training.prepared), training.validation_interval
    most = "up to " if training.validation.patience else ""
    unit, amount, processing = "images", "", training.model.processing
    if processing is None:
        learned = training.objective.learned_share(data.loss_tokens, data.tokens)
        unit, amount = "sequences", f", {data.tokens:,} tokens, {learned}"
    often = f", measured every {interval} steps" if interval < training.steps else ""
    lines = [
        f"{facts.name} ({facts.source}; {facts.dtype} on {facts.device}: {training.model.precision.why})",
        f"{data.rows:,} rows in {data.format} format: {data.training_sequences:,} training {unit}{amount}"
        + (f"; {data.validation_sequences:,} validation {unit}{often}" if data.validation_sequences else ""),
        processing.describe() if processing is not None else "",
        f"{training.trained_parameters:,} trainable parameters in {len(trainable.names)} {trainable.unit}; "
        f"{most}{training.steps} steps at learning rate {training.rate:.2g}",
        *about_extras,
        f"replay: {report.replay.describe()}" if report.replay is not None else "",
        *map(about, report.files),
        *(f"{label}: {text}" for label, text, count in lines_of(report) if count),
    ]
    return "\n".join(filter(None, lines))


def results_of(training: Training, records: Sequence[StepRecord], validation: Validation, seconds: float) -> Results:
    """`loss` is the mean over the last tenth of the steps."""
    last = records[-max(1, len(records) // 10) :]
    images = sum(record.images for record in records)
    together = sum(parameter.numel() for parameter in training.model.module.parameters())
    ends = 0, validation.result_step
    before, after = map(validation.loss_after, ends)
    after = validation.calibrated or after
    accuracies = [validation.score_after(step, "accuracy") for step in ends]
    return Results(
        steps=len(records),
        loss=sum(r.loss * r.loss_tokens for r in last) / sum(r.loss_tokens for r in last),
        validation_loss_before=before.loss if before else None,
        validation_loss_after=after.loss if after else None,
        validation_loss_tokens=after.loss_tokens if after else None,
        train_seconds=seconds,
        tokens_per_second=sum(record.tokens for record in records) / seconds,
        images_per_second=images / seconds if images else None,
        peak_rss_bytes=peak_rss(),
        trainable_parameters=training.trained_parameters,
        total_parameters=together - training.trainable.extra_parameters,
        adapter_bytes=0,  # nothing is written yet
        kept_step=validation.result_step,
        kept_why=validation.result_why,
        ended_early=validation.stopped_early,
        validation_accuracy_before=accuracies[0].value if accuracies[0] else None,
        validation_accuracy_after=accuracies[1].value if accuracies[1] else None,
        temperature=validation.temperature,
        baselines=_baselines(training, accuracies[0]) if training.session.world.is_first else None,
        preference=pair_results(validation.score_after, *ends),
    )


def _baselines(training: Training, before: ScoreRecord | None) -> dict[str, float] | None:
    found = baselines(training.scorer, training.prepared)
    if found is None or before is None or training.lineage or training.model.own_head:
        return found
    return {**training.objective.fitted_baseline(before.value), **found}


def class_warnings(training: Training, validation: Validation, results: Results, rate: float) -> list[str]:
    """Warnings about a classifier, such as a class that it never predicts; `rate` is its learning rate."""
    losses = [one for one in validation.records if isinstance(one, LossRecord)]
    epochs = training.steps * training.rows_per_step / training.prepared.rows_in_pass
    found = never_predicted(training.scorer, results.kept_step or 0, rate)
    found += still_falling(losses, training.steps, epochs, training.objective.falling)
    own, words = results.validation_accuracy_after, (results.baselines or {}).get("words", 0.0)
    if own is not None and words > own:
        found.append(
            f"on the {len(training.prepared.validation)} validation rows, logistic regression on words (TF-IDF) is "
            f"right more often than this model: {words:.1%} against {own:.1%}"
        )
    return found


def data_facts(prepared: Prepared) -> DataFacts:
    """What the manifest keeps beside the data report."""
    data_report, trained = prepared.data_report, prepared.trained_rows
    hashes = [file.sha256 for file in data_report.files]
    return DataFacts(
        path=", ".join(file.name for file in data_report.files),
        sha256=hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest(),
        format=data_report.format,
        rows=data_report.rows,
        training_sequences=len(trained),
        validation_sequences=len(prepared.validation),
        rows_too_long=data_report.skipped_why.get("too long", 0),
        tokens=trained.tokens,
        loss_tokens=trained.loss_count,
    )
