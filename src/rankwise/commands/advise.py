"""Measure on held-out rows whether to train, to put examples into the prompt, or neither (training/advising.py).

The base is loaded once. Adapters are attached to it and removed, and nothing is written but what `out` names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.incompatible import problems as problems_of
from rankwise.config.reading import with_settings
from rankwise.errors import ConfigError, DataError, RunError
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import decided, objective_of
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.text.outcome import RowEncoding
from rankwise.rows.writing import TextWriting
from rankwise.runs.advice import Advice, lines_of
from rankwise.runs.records import Callback, StatusMessage, WarningCollector, silent
from rankwise.system.files import published, write_atomic, write_json
from rankwise.system.memory import limited_memory
from rankwise.training.advising import ADVISING, EXAMPLES, Advising, Design
from rankwise.training.preflight import Foresight, foresee, within_limit
from rankwise.training.workload import Presentation

SHARE_HELD_OUT, MOST_HELD_OUT = 5, 200
"""Without validation rows, a fifth of the rows is held out, and no more than this."""


def advise(
    experiment: Experiment, *, examples: int = EXAMPLES, out: Path | None = None, callback: Callback = silent,
    model: LoadedModel | None = None, force_memory: bool = False, advising: Callable[..., Advising] | None = None,
) -> Advice:  # fmt: skip
    """The experiment is the full run that advice is wanted on; nothing of it is written. A `model` that is loaded
    already saves loading it again. With `out`, the advice lies there as JSON and as text. `advising` makes the
    measurement, instead of the objective's own."""
    problems = problems_of(experiment, "advise")
    if examples < 0:
        problems.append(f"--examples is {examples}; it must be 0 or more.")
    if problems:
        raise ConfigError(problems)
    if out is not None and out.exists():
        raise RunError(f"{out} already exists and is not overwritten.")
    callback = WarningCollector(callback)
    experiment = decided(experiment, callback)
    with limited_memory(experiment.model.memory_bytes):
        objective = objective_of(experiment.objective, experiment.rows, callback)
        if refusal := objective.words.cannot.get("advised on"):
            raise ConfigError([refusal])
        if model is not None:
            _refuse_other(model, experiment.base.name, objective)
        foreseen = foresee(with_settings(experiment.explicit), callback, objective.head_size)
        training, foreseen = within_limit(experiment.training, foreseen, callback)
        if foreseen is not None:
            foreseen.check(callback, force=force_memory)
        loaded = load(experiment.base, callback, objective.kind) if model is None else model
        loaded, prepared = _with_rows(loaded, objective, experiment.data, callback)
        made = (advising or objective.among(ADVISING))(
            adapter_config=experiment.adapter, presentation=Presentation(experiment.data.packing, experiment.images),
            config=training.resolved(len(prepared.trained), loaded.width, experiment.auto_rate), model=loaded,
            objective=objective, prepared=prepared, callback=callback, examples=examples,
        )  # fmt: skip
        advice = made.measure(_foretell(made.design, foreseen, callback))
    advice = advice.model_copy(update={"warnings": callback.texts})
    if out is not None:
        with published(out) as folder:
            write_json(folder / "advice.json", advice.model_dump(mode="json"))
            write_atomic(folder / "advice.txt", "\n".join([*lines_of(advice), ""]).encode())
        callback(StatusMessage(f"written to {out}"))
    return advice


def _with_rows(
    loaded: LoadedModel, objective: Objective, data: DataConfig, callback: Callback
) -> tuple[LoadedModel, Prepared]:
    """The model with the chat template of the rows, and the rows."""
    writing = objective.rows.encoding(loaded)
    if isinstance(used := writing.by(data), TextWriting):
        loaded = loaded.with_template(used.template)
    return loaded, _prepared(data, writing, callback)


def _refuse_other(model: LoadedModel, name: str, objective: Objective) -> None:
    if refusal := objective.words.cannot.get("advised on from a loaded model"):
        raise ConfigError([refusal])
    if name != model.config.name:
        raise ConfigError([f'the given model is "{model.config.name}", but the experiment names {name}.'])


def _prepared(data: DataConfig, row_encoding: RowEncoding, callback: Callback) -> Prepared:
    """The rows, with some of them held out."""
    if data.held_out == "auto":
        data = data.model_copy(update={"held_out": 0})
    prepared = prepare(data, row_encoding, callback)
    refuse_fatal(prepared.data_report)
    if not len(prepared.validation):
        rows = prepared.data_report.used
        held_out = min(MOST_HELD_OUT, rows // SHARE_HELD_OUT)
        if held_out < 2:
            raise DataError(f"{data.path}: {rows} usable rows are too few to hold some out. Give more rows.")
        callback(StatusMessage(f"{held_out:,} of {rows:,} rows are held out (--held-out)"))
        prepared = prepare(data.model_copy(update={"held_out": held_out}), row_encoding, callback)
        refuse_fatal(prepared.data_report)
    return prepared


def _foretell(planned: Design, forecast: Foresight | None, callback: Callback) -> float | None:
    """Tell beforehand what advising takes; in seconds where the plan knows the speed of this machine."""
    duration, steps = (None, None) if forecast is None else (forecast.plan.duration, forecast.plan.steps)
    seconds = None if duration is None or not steps else duration.total.likely / steps * planned.work
    clock = "" if seconds is None else f", about {seconds:.0f} s"
    callback(StatusMessage(
        f"advising trains {planned.steps} + {planned.part_steps} steps and measures {planned.rows} held-out rows: "
        f"the work of {planned.work:.0f} steps, {planned.work / planned.full_steps:.0%} of the run's "
        f"{planned.full_steps:,}{clock}"
    ))  # fmt: skip
    return seconds
