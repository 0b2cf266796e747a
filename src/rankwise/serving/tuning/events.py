"""What happened to a job, from its run's own records: metrics of each step, validations, and how it ended."""

from __future__ import annotations

import csv
import io
import math

from rankwise.config.base import JsonObject
from rankwise.runs.metrics_log import History
from rankwise.serving.tuning.jobs import Job, State, seconds_of


def events_of(job: Job, state: State, history: History, warning: str | None = None) -> list[JsonObject]:
    """The newest first."""
    events = list[JsonObject]()

    def add(at: int, message: str, level: str = "info", data: JsonObject | None = None) -> None:
        events.append({
            "object": "fine_tuning.job.event", "id": f"ftevent-{job.id[6:]}{len(events):06d}", "created_at": at,
            "level": level, "message": message, "type": "message" if data is None else "metrics", "data": data or {},
        })  # fmt: skip

    add(job.created_at, f"Created fine-tuning job: {job.id}")
    add(job.created_at, f"Files validated, moving job to queued state: {job.training_file}")
    began = (None if state.manifest is None else seconds_of(state.manifest.started)) or job.created_at
    if state.manifest is not None:
        add(began, "Fine-tuning job started")
        for text in state.manifest.warnings:
            add(began, text, "warn")
    losses = {one.step: one.loss for one in history.losses}
    elapsed = 0.0
    for step in history.steps:
        elapsed += _finite(step.seconds) or 0.0
        data = {"step": step.step, "total_steps": step.steps, "train_loss": _finite(step.loss)}
        message = f"Step {step.step}/{step.steps}: training loss={step.loss:.4f}"
        if (loss := losses.get(step.step)) is not None:
            message += f", validation loss={loss:.4f}"
            data["valid_loss"] = _finite(loss)
        if step.preference_accuracy is not None:
            data["train_preference_accuracy"] = _finite(step.preference_accuracy)
        add(began + int(elapsed), message, data=data)
    ended = state.ended_at or began + int(elapsed)
    if state.status == "succeeded":
        add(ended, f"New fine-tuned model created: {job.tuned}")
        add(ended, "The job has successfully completed")
        if warning is not None:
            add(ended, warning, "warn")
    elif state.status == "failed":
        add(ended, f"The job failed: {state.problem}", "error")
    elif state.status == "cancelled":
        add(job.cancelled_at or ended, "The job was cancelled")
    elif state.status == "paused":
        add(job.paused_at or ended, "The job was paused")
    return events[::-1]


def results_of(history: History) -> str:
    """The result file: a line for each step."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "train_loss", "valid_loss"])
    losses = {one.step: one.loss for one in history.losses}
    for step in history.steps:
        table.writerow([step.step, f"{step.loss:.6f}", f"{losses[step.step]:.6f}" if step.step in losses else ""])
    return text.getvalue()


def checkpoints_of(job: Job, state: State, history: History) -> list[JsonObject]:
    """The model that a finished job selected, which is the only one that stays."""
    results = None if state.manifest is None else state.manifest.results
    if state.status != "succeeded" or results is None:
        return []
    step = results.kept_step or results.steps
    losses = {one.step: one.loss for one in history.steps}
    validation = _finite(results.validation_loss_after)
    metrics = {"step": step, "train_loss": _finite(losses.get(step, results.loss)), "valid_loss": validation,
               "full_valid_loss": validation}  # fmt: skip
    return [{
        "object": "fine_tuning.job.checkpoint", "id": f"ftckpt-{job.id[6:]}", "created_at": state.ended_at,
        "fine_tuned_model_checkpoint": job.tuned, "fine_tuning_job_id": job.id, "metrics": metrics, "step_number": step,
    }]  # fmt: skip


def as_json(job: Job, state: State, history: History | None) -> JsonObject:
    """The job as OpenAI's API shows it; the history is of a running one."""
    own = job.hyperparameters.model_dump()
    kind = "dpo" if job.dpo else "supervised"
    manifest = state.manifest
    done = state.status == "succeeded"
    tokens = int(manifest.data.tokens * own["n_epochs"]) if done and manifest is not None else None
    error = {"code": "training_failed", "message": state.problem, "param": None} if state.status == "failed" else None
    return {
        "object": "fine_tuning.job", "id": job.id, "created_at": job.created_at, "model": job.model,
        "fine_tuned_model": job.tuned if done else None, "finished_at": state.ended_at if done else None,
        "organization_id": "rankwise", "status": state.status, "training_file": job.training_file,
        "validation_file": job.validation_file, "hyperparameters": own, "trained_tokens": tokens,
        "result_files": [job.result_file] if job.result_file else [], "error": error, "seed": job.seed,
        "estimated_finish": _estimated(state, history), "integrations": [], "metadata": job.metadata,
        "method": {"type": kind, kind: {"hyperparameters": own}}, "user_provided_suffix": job.suffix,
    }  # fmt: skip


def _estimated(state: State, history: History | None) -> int | None:
    """By the steps so far."""
    if history is None or state.manifest is None or not history.steps:
        return None
    last, spent = history.steps[-1], sum(one.seconds for one in history.steps)
    began = seconds_of(state.manifest.started)
    return None if began is None or not math.isfinite(spent) else began + int(spent * last.steps / max(1, last.step))


def _finite(value: float | None) -> float | None:
    """JSON has no other numbers."""
    return value if value is not None and math.isfinite(value) else None
