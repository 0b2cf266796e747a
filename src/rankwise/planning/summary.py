"""A plan as one object for programs. Of models that rankwise does not train only the parameters are told."""

from __future__ import annotations

from typing import Any

from rankwise.planning.forecast import Fit, Forecast
from rankwise.planning.parameters import target_notes
from rankwise.planning.plan import Plan
from rankwise.planning.time import Speed
from rankwise.planning.tuning import tuning_of


def summary_of(plan: Plan) -> dict[str, Any]:
    """What `rankwise plan --json` prints."""
    counted = plan.forecast.parameters
    found = {
        "model": plan.shape.name, "family": plan.shape.family, "method": plan.config.adapter.method,
        "outputs": plan.shape.outputs, "image_size": plan.shape.image,
        "trained_by_rankwise": plan.trained,
        "total_parameters": counted.total, "trainable_parameters": counted.trainable, "times_fewer": counted.ratio,
        "trainable_by_layer": {leaf: {"layers": n, "parameters": p} for leaf, (n, p) in counted.by_leaf.items()},
        "target_notes": target_notes(plan.shape, plan.config.adapter),
        "adapter_bytes": counted.file_bytes, "adapter_bytes_float16": counted.file_bytes_half,
        "weights_bytes": plan.weights_by_format, "memory_bytes_at_least": plan.forecast.memory.at_least,
        "disk": plan.disk and {**vars(plan.disk), "total": plan.disk.total},
        "tokens": plan.rows and plan.rows.tokens,
        "loss_tokens": plan.rows and plan.rows.supervised,
        "replay_rows": None if plan.rows is None else round(plan.rows.replayed),
    }  # fmt: skip
    parts = (_memory(plan), _fits(plan), _time(plan))
    return found | {key: value if plan.trained else None for part in parts for key, value in part.items()}


def _memory(plan: Plan) -> dict[str, Any]:
    return {
        "memory_bytes": _parts(plan.forecast),
        "memory_formulas": {part.name: part.formula for part in plan.forecast.memory.parts},
        "memory_bytes_of_methods": {method: _parts(one) for method, one in plan.methods.items()},
        "device": plan.device.name, "form": plan.forecast.form, "dtype": plan.forecast.dtype,
        "storage": plan.forecast.storage, "conversion": plan.conversion,
    }  # fmt: skip


def _fits(plan: Plan) -> dict[str, Any]:
    fit = plan.fit
    return {
        "fits": fit.fits, "blocks_to_recompute": fit.recomputed, "largest_max_batch_tokens": fit.tokens,
        "largest_max_batch_tokens_recomputed": fit.tokens_recomputed,
        "savings": plan.savings,
        "remedies": [] if fit.fits else plan.remedies,
        "devices": {one.device.name: _device(one) for one in plan.fits_elsewhere},
    }  # fmt: skip


def _device(fit: Fit) -> dict[str, Any]:
    return {
        "fits": fit.fits, "peak": fit.peak, "usable": fit.device.usable, "blocks_to_recompute": fit.recomputed,
        "largest_max_batch_tokens": fit.tokens,
    }  # fmt: skip


def _time(plan: Plan) -> dict[str, Any]:
    """How long a run takes and what that follows from: null where the number of steps or the speed of the device is not
    known."""
    told, speed = plan.duration, plan.speed
    whole = told if plan.steps is not None else None
    run = whole and whole.total
    return {
        "flops_per_token": plan.flops_per_token, "steps": plan.steps, "tokens_per_step": plan.step.tokens,
        "seconds": run and run.likely, "seconds_low": run and run.low, "seconds_high": run and run.high,
        "command_seconds": whole and whole.command,
        "seconds_per_step": told and told.step.likely,
        "speed": speed and speed.origin,
        "speed_source": f"{speed.source}; {speed.efficiency.source}" if isinstance(speed, Speed) else None,
        "money": plan.money, "tuning": _tuning(plan), "processes": _processes(plan),
    }  # fmt: skip


def _processes(plan: Plan) -> dict[str, Any] | None:
    """Null for one process. Memory and fit are then those of each process, time is that of all together."""
    if not plan.processes.is_several:
        return None
    count, rows, peak = plan.processes.count, plan.rows_in_step, plan.sharded_peak
    return {
        "count": count, "rows_per_step": rows, "idle": max(0, count - rows), "largest_share": plan.largest_share,
        "gradient_bytes": round(plan.forecast.memory["gradients"]), "sharded": None if peak is None else {"peak": peak},
    }  # fmt: skip


def _tuning(plan: Plan) -> dict[str, Any] | None:
    """The trials of --tune; without any where the run is too short for them."""
    planned = tuning_of(plan)
    if planned is None:
        return None
    trials, seconds = planned
    return {"trials": trials.trials if trials else 0, "steps": trials.cost if trials else 0.0, "seconds": seconds}


def _parts(forecast: Forecast) -> dict[str, int]:
    return {part.name: round(part.bytes) for part in forecast.memory.parts} | {"peak": forecast.peak}
