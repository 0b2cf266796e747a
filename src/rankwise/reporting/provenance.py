"""Sections on data, cost and environment of a run, from its records only.

The one calculated figure is marked as such: the memory that full fine-tuning would have needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rankwise.config.base import JsonObject
from rankwise.config.method import MethodConfig
from rankwise.reporting.document import Section, as_code, facts, folded, listed, paragraph, table
from rankwise.reporting.markup import Markup, Rows, element
from rankwise.reporting.quantities import count, duration, plural, share, size
from rankwise.runs.data_report import MOST_LISTED, DataReport, about, lines_of, verdict_of
from rankwise.runs.lineage import described
from rankwise.runs.manifest import Forecasted, Manifest, Results
from rankwise.runs.own_files import SETTINGS
from rankwise.runs.snapshot import RunSnapshot

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
FULL = 16
"""Bytes per parameter: weight, gradient and AdamW's two moments, four bytes each."""
SHOWN_ROWS = 5
"""At most so many of the rows that were left out are shown."""
FORECASTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "trainable_parameters": ("trained parameters", "{:,.0f}".format),
    "adapter_bytes": ("saved file size", size),
    "steps": ("steps", "{:,.0f}".format),
    "peak_bytes": ("peak memory", size),
    "seconds": ("time", duration),
}
"""Label and format of each field of a forecast."""


def data_section(run: RunSnapshot) -> Section:
    data_report, summary = run.data_report, run.manifest.data
    if data_report is None:
        pairs = [("rows", count(summary.rows)), ("format", summary.format), ("target "
        "tokens", count(summary.loss_tokens)),
                 ("sha256", summary.sha256)]  # fmt: skip
        return Section(
            "data", "Data", {"manifest": summary, "data_report": None},
            [paragraph("The data report (data_report.json) is missing; these figures are from the "
                "manifest."), facts(pairs)],
        )  # fmt: skip
    decided = facts([
        ("format", data_report.format), ("recipe", data_report.recipe or "none"),
        ("system message", data_report.system or "none shared by all rows"),
        *((f"SHA-256 of {one.name}", one.sha256) for one in data_report.files),
    ])  # fmt: skip
    return Section(
        "data", "Data", {"manifest": summary, "data_report": data_report},
        [*data_blocks(data_report), decided],
        about="How the training data was read: what was used and what was left out.",
    )  # fmt: skip


def data_blocks(data_report: DataReport) -> list[Markup]:
    """What a page and a terminal show. If there are errors, lines without a count are left out."""
    counts = [(label, text) for label, text, count in lines_of(data_report) if count or not data_report.fatal]
    aside = [f"{name}: belongs to another split and is not read" for name in data_report.left_aside]
    shown = () if data_report.fatal else data_report.skipped_rows[:SHOWN_ROWS]
    more = data_report.skipped - len(shown) if shown else 0
    left_out = [one.why for one in shown] + [f"{more:,} more; --json lists the first {MOST_LISTED}"] * (more > 0)
    return [
        _noted("error", "problem", data_report.fatal),
        listed(data_report.advice),
        listed([*map(about, data_report.files), *aside]),
        facts(counts),
        _noted("warning", "warnings", data_report.warnings),
        listed([f"left out: {why}" for why in left_out]),
        paragraph(verdict_of(data_report)),
    ]


def _noted(kind: str, style: str, messages: Iterable[str]) -> Markup:
    items = [f"{kind}: {message}" for message in messages]
    return element("div", listed(items), class_=style) if items else Markup("")


def cost_section(run: RunSnapshot) -> Section:
    results, manifest = run.manifest.results, run.manifest
    if results is None:
        steps = run.history.steps
        spent = sum(one.seconds for one in steps)
        return Section(
            "cost", "Cost", {"results": None, "seconds_in_steps": spent},
            [paragraph(f"The run has no results. Its {plural(len(steps), 'step')} took {duration(spent)}.")],
        )  # fmt: skip
    against = against_full(manifest, results, run.experiment.adapter)
    blocks = [foreseen_table(manifest), _arithmetic(against) if against else Markup("")]
    twin = {"results": results, "by_arithmetic": against, "forecast": forecast_and_fact(manifest)}
    return Section("cost", "Cost", twin, [block for block in blocks if block])


def against_full(manifest: Manifest, results: Results, method: MethodConfig) -> JsonObject | None:
    """Compare the bytes of weights, gradients and optimizer of this run with full fine-tuning in float32, without
    activations; None if this run was full fine-tuning."""
    if results.trainable_parameters == results.total_parameters:
        return None
    per_weight = BYTES_OF.get(manifest.base_model.dtype, 4)
    return {
        "formula": f"{FULL} bytes per trainable parameter (weight, gradient, two moments, float32) and "
        f"{per_weight} "
        f"per frozen parameter ({manifest.base_model.dtype})",
        "time": _time(manifest, method),
        "full_fine_tuning_bytes": FULL * results.total_parameters,
        "this_run_bytes": per_weight * results.total_parameters + FULL * results.trainable_parameters,
    }


def _time(manifest: Manifest, method: MethodConfig) -> str | None:
    """Return a sentence about time from a benchmark of another model, if it applies to this method and backend."""
    times = method.full_takes.get(manifest.backend)
    if times is None or manifest.base_model.device != "cpu":
        return None
    return (
        "In the benchmark of docs/speed.md (SmolLM2-135M on two cores), a step of full fine-tuning in float32 took "
        f"{times:g} times as long as one of LoRA with the {manifest.backend} backend. It was not measured for this "
        "model."
    )


def _arithmetic(against: JsonObject) -> Markup:
    full, this = against["full_fine_tuning_bytes"], against["this_run_bytes"]
    return element(
        "aside",
        element("h3", "Compared with full fine-tuning (calculated)"),
        paragraph(
            f"Full fine-tuning of this model would need {size(full)} for weights, gradients and optimizer; this run "
            f"needed {size(this)}, or {share(this, full)}. This assumes {against['formula']}. Activations come on top "
            "of both. These figures are calculated, not measured."
        ),
        paragraph(against["time"]) if against["time"] else Markup(""),
        class_="arithmetic",
    )


def made_with(run: RunSnapshot) -> list[tuple[str, str]]:
    """What it takes to repeat a run."""
    manifest, base = run.manifest, run.manifest.base_model
    return [
        ("base model", f"{base.name} ({base.source})"),
        ("base model fingerprint", base.fingerprint),
        ("computed with", f"{base.dtype} on {base.device}, {manifest.backend} backend"),
        *([("rounds before this one", described(manifest.lineage, short=True))] if manifest.lineage else []),
        *([("held to its base on", manifest.anchor.text)] if manifest.anchor is not None else []),
        *([("replay", manifest.replay.describe())] if manifest.replay is not None else []),
        ("seed", str(run.experiment.training.seed)),
        ("learning rate", f"{manifest.learning_rate:g}"),
        ("started", manifest.started),
        ("ended", f"{manifest.ended or 'not yet'} ({manifest.status})"),
        ("resumed", ", ".join(f"after step {one.step:,} at {one.at}" for one in manifest.resumed) or "never"),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ("machine", ", ".join(_of_machine(manifest.machine))),
        ("command", shlex.join(_repeatable(run))),
    ]  # fmt: skip


def _repeatable(run: RunSnapshot) -> list[str]:
    """The command that began a run, or for one of the queue, whose own file goes with it, one that does the same."""
    words = run.manifest.command
    if any(Path(word).parts[-3:-1] == (".queue", "started") for word in words):
        return ["rankwise", "train", str(run.folder / SETTINGS)]
    return ["rankwise", *words[1:]] if words[:1] == ["__main__.py"] else words


def environment_section(run: RunSnapshot) -> Section:
    manifest = run.manifest
    return Section(
        "environment", "Environment",
        {"manifest": manifest.model_dump(exclude={"results", "data"}), "spec": run.experiment},
        [facts(made_with(run)), folded("All settings", as_code(run.experiment))],
        about="Everything needed to repeat the run.",
    )  # fmt: skip


def _of_machine(machine: JsonObject) -> list[str]:
    def recorded(name: str, value: Any) -> str:
        if name == "memory_bytes" and isinstance(value, int | float):
            return f"{size(value)} of memory"
        return plural(value, "core") if name == "cores" and isinstance(value, int) else str(value)

    return [recorded(name, value) for name, value in machine.items()]


def forecast_and_fact(manifest: Manifest) -> JsonObject | None:
    """Pairs of forecast and fact, and by what share the forecast was off; None where there was no forecast. What a card
    held is not measured."""
    forecast, results = manifest.forecast, manifest.results
    if forecast is None or results is None:
        return None
    pairs = {
        "trainable_parameters": (forecast.trainable_parameters, results.trainable_parameters),
        "adapter_bytes": (forecast.adapter_bytes, results.adapter_bytes),
        "steps": (forecast.steps, results.steps),
        "peak_bytes": (forecast.peak_bytes, results.peak_rss_bytes if manifest.base_model.device == "cpu" else None),
        "seconds": (forecast.train_seconds, results.train_seconds),
    }
    return {
        name: _pair(expected, actual)
        for name, (expected, actual) in pairs.items()
        if expected is not None and actual is not None
    }


def _pair(expected: float, actual: float) -> dict[str, float | None]:
    return {"forecast": expected, "fact": actual, "off": expected / actual - 1 if actual else None}


def foreseen_table(manifest: Manifest) -> Markup:
    pairs, forecast = forecast_and_fact(manifest), manifest.forecast
    if not pairs or forecast is None:
        return Markup("")
    rows: Rows = []
    for name, pair in pairs.items():
        label, text = FORECASTS[name]
        off = "\u2013" if pair["off"] is None else f"{pair['off']:+.1%}"
        rows.append([label, text(pair["forecast"]) + _between(name, forecast), text(pair["fact"]), off])
    return element(
        "aside",
        element("h3", "Forecast and actual values"),
        paragraph(f"The forecast of `rankwise plan` before training began, for {forecast.device}."),
        table(("quantity", "forecast", "actual", "error"), rows, words=(0,), label="forecast and actual values"),
    )


def _between(name: str, forecast: Forecasted) -> str:
    low, high = forecast.seconds_low, forecast.seconds_high
    if name != "seconds" or low is None or high is None or low == high:
        return ""
    return f" ({duration(forecast.share_of_steps * low)} to {duration(forecast.share_of_steps * high)})"
