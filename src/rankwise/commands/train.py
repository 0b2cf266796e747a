"""Wire data, model, adapter and loop together: from an Experiment to a finished run.

Nothing is written before everything that can be wrong beforehand has been checked: settings, rows, model, targets.
What was learned is written whole, then the manifest says finished. A run that fails or is stopped keeps its metrics and
its last checkpoint and says so; it never holds an adapter or a model.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.adapters.targets import tables_of_the_head
from rankwise.commands.report import write_page
from rankwise.config.experiment import Experiment
from rankwise.data.preparation import Prepared
from rankwise.data.preparing import TextWriting, facts_of, prepare, refuse_fatal
from rankwise.errors import ConfigError, Interrupted, RankwiseError, RunError, is_out_of_memory, some
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.starting import changed_since as start_changed
from rankwise.methods.starting import start_of
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import decided, objective_of
from rankwise.runs.data_report import TargetFacts
from rankwise.runs.directory import RunDirectory
from rankwise.runs.integrity import hashes_of
from rankwise.runs.manifest import Manifest, now
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import Callback, StatusMessage, WarningCollector, WarningMessage, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.tuning import Tuning
from rankwise.system.files import need_space
from rankwise.system.memory import limited_memory
from rankwise.training.anchor import facts_of as facts_of_anchor
from rankwise.training.anchor import text_of_run
from rankwise.training.backend import backend_named, choose_backend
from rankwise.training.preflight import Foresight, foresee, foresee_backend, out_of_memory, within_limit
from rankwise.training.resume import Past, changed_since, ranks_before_training, settings_of, take_up
from rankwise.training.run import TrainingRun
from rankwise.training.trainer import Trainer
from rankwise.training.trials import Trials
from rankwise.training.tuning import tune
from rankwise.training.validation import SCORERS
from rankwise.training.workload import Workload

OWN_HEAD = "the model has a head with as many outputs already, which is trained further and not drawn anew"
LABELS_AS_ANSWERS = (
    "the objective is causal-lm, so the labels are learned as answers. --objective sequence-classification trains a "
    "classifier with a head instead"
)


@dataclass(frozen=True)
class Trained:
    """A finished run, and the model as it was tuned. `trainable.base()` makes it its own base for a while."""

    run: RunDirectory
    manifest: Manifest
    result: Path
    """The folder of what was learned."""
    model: LoadedModel
    trainable: Trainable
    targets: TargetFacts | None = None
    """The classes or numbers that a classifier predicts."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise train --json` prints."""
        results = self.manifest.results
        assert results is not None, "only a finished run is returned"
        forecast, tuning = self.manifest.forecast, self.manifest.tuning
        return {
            "run": str(self.run.folder), self.result.name: str(self.result), **results.model_dump(),
            "validation_accuracy": results.validation_accuracy_after,
            "forecast": None if forecast is None else forecast.model_dump(), "warnings": list(self.manifest.warnings),
            "learning_rate": self.manifest.learning_rate,
            "tuning": None if tuning is None else tuning.model_dump(mode="json"),
        }  # fmt: skip


def train(
    experiment: Experiment, *, callback: Callback = silent, restart: bool = False, resume: bool = False,
    model: LoadedModel | None = None, force_memory: bool = False, force_base: bool = False,
) -> Trained:  # fmt: skip
    """Train an adapter or a whole model; the result lies in `runs/NAME`. A `model` that is loaded already saves loading
    it again; the method full learns on a copy of it. ResourceError where the plan says that it cannot fit into memory,
    unless `force_memory`. An adapter to begin with must have been trained on the same base, unless `force_base`."""
    if restart and resume:
        raise ConfigError(["--restart starts again from the first step and --resume continues; give one of them."])
    run, callback = RunDirectory.named(experiment.run), WarningCollector(callback)
    experiment = decided(experiment, callback)
    with run.claimed(restart=restart, resume=resume), limited_memory(experiment.model.memory_bytes):
        start = None if resume else start_of(experiment, callback)
        if resume:
            experiment = settings_of(run, experiment)
        elif start is not None:
            experiment = start.foreseen(experiment)
        objective = objective_of(experiment, callback)
        if start is not None:
            start.check_targets(objective.targets, callback)
        if model is not None and (problem := _misfit(model, experiment, objective)):
            raise ConfigError([problem])
        foreseen = foresee(experiment, callback, objective.targets)
        training_config, foreseen = within_limit(experiment, foreseen, callback)
        if foreseen is not None and not resume:
            foreseen.check(callback, force=force_memory)
        own_copy = method_of(experiment.adapter).own_copy
        loaded = _loaded(experiment, objective, callback) if model is None else own_copy(model)
        if start is not None:
            experiment = start.settled(experiment, loaded, callback, force_base=force_base)
        method = method_of(experiment.adapter)
        prepared, loaded = _prepared(experiment, objective, loaded, callback)
        scorer = SCORERS[objective.name](experiment.validation, loaded, prepared, objective)
        rows = prepared.trained_rows
        config = training_config.resolved(len(rows), loaded.width, experiment.auto_rate)
        setup = Setup(
            config, config.total_steps(len(rows)), rows, described=f'run "{experiment.run}"', callback=callback,
            heads=objective.heads(loaded), load=objective.load, start=start,
            resumed_ranks=partial(ranks_before_training, run) if resume else None,
        )  # fmt: skip
        trials = Trials(experiment, loaded, method, objective, setup, prepared)
        if (tuning := _tuning(trials, run, foreseen, callback, resume=resume)) is not None:
            config = config.model_copy(update={"learning_rate": tuning.learning_rate})
        trainable = method.attach(loaded, replace(setup, training=config))
        try:
            if shared := tables_of_the_head(loaded.module, trainable.names):
                callback(WarningMessage(_shared(shared)))
            work = Workload.of(
                loaded.module, trainable, objective, config, prepared, experiment.data.packing, callback,
                varied=experiment.images.augmentation != "none",
            )  # fmt: skip
            lineage = run.manifest().lineage if resume else () if start is None else start.lineage
            text = text_of_run(config, loaded, trainable, callback)
            training = TrainingRun(
                experiment, config, run, loaded, method, trainable, prepared, scorer, work, callback, lineage, text,
                tuning,
            )  # fmt: skip
            result, manifest = training.result, _recorded(training, foreseen, resume=resume, force_memory=force_memory)
            tuned = method.tuned(loaded, result)
            return Trained(run, manifest, result, tuned, trainable, objective.targets)
        except BaseException:
            trainable.remove()  # a model that was given is to be what it was
            raise


def _misfit(model: LoadedModel, experiment: Experiment, objective: Objective) -> str | None:
    """Why a model that is loaded already cannot be trained in this experiment."""
    if objective.targets is not None:
        return "a classifier gets its new head when its model is loaded; give the model's name, not a loaded model."
    spec = model.spec if model.quantization is not None else model.spec.model_copy(update={"quantize": "none"})
    if experiment.base not in (model.spec, spec):  # weights in full are the same by either setting
        return f'the given model is "{model.spec.name}", but the experiment names another one: {experiment.base}.'
    return None


def _prepared(
    experiment: Experiment, objective: Objective, model: LoadedModel, callback: Callback
) -> tuple[Prepared, LoadedModel]:
    """The rows, and the model with the template that they are written with."""
    writing = objective.writing(model)
    prepared = prepare(experiment.data, writing, callback)
    refuse_fatal(prepared.data_report)
    if prepared.data_report.format == "classification" and objective.targets is None:
        callback(StatusMessage(LABELS_AS_ANSWERS))
    used = writing.by(experiment.data)
    return prepared, model.with_template(used.template) if isinstance(used, TextWriting) else model


def _loaded(experiment: Experiment, objective: Objective, callback: Callback) -> LoadedModel:
    loaded = objective.load(experiment.base, callback)
    if loaded.own_head:
        callback(StatusMessage(OWN_HEAD))
    return loaded


def _tuning(
    trials: Trials, run: RunDirectory, foreseen: Foresight | None, callback: Callback, *, resume: bool
) -> Tuning | None:
    """How trials choose the learning rate, or chose it when the run that is resumed began; None without `tune`."""
    if trials.experiment.training.learning_rate != "tune":
        return None
    if not resume:
        return tune(trials, foreseen, callback)
    if (chosen := run.manifest().tuning) is None:
        raise RunError(f"{run.folder} does not record the learning rate that trials chose. Use --restart.")
    return chosen


def _shared(paths: list[str]) -> str:
    return (
        f"{some(paths)} shares its weight with the output head, and the adapter changes the embedding alone. Other "
        "programs that merge it would change both; `rankwise export --format merged` separates them first"
    )


def _recorded(
    training: TrainingRun, foreseen: Foresight | None, *, resume: bool, force_memory: bool
) -> Manifest:  # fmt: skip
    """Begin the run or take it up, and train; however it ends, the manifest says so."""
    run, callback = training.run, training.callback
    training.check()
    setting, work = training.config.backend, training.work
    backend = (
        backend_named(run.manifest().backend, work)
        if resume
        else choose_backend(work, setting, training.tokens_trained)
    )
    again = foresee_backend(foreseen, backend.name, callback)
    if again is not None and again is not foreseen and not resume:
        again.check(callback, force=force_memory)
    log, validation = MetricsLog(run.metrics), training.validation(backend)
    anchor = training.anchor(backend)
    budget = training.budget(anchor, validation)
    trainer = training.trainer(backend, validation, log, anchor, budget)
    past = _begun(training, trainer, again, resume=resume)
    manifest, validation.records = past.manifest, past.validations
    if budget is not None:
        budget.take_up(past.budget)
    callback.changed = lambda texts: run.write_manifest(manifest.model_copy(update={"warnings": texts}))
    try:
        with log:
            records = [*past.steps, *trainer.run()]
        outcome = None if budget is None else budget.outcome
        results = training.save(training.results(records, validation, past.seconds + trainer.seconds, outcome))
        callback.changed = lambda texts: None
        update = {"status": "finished", "ended": now(), "results": results, "warnings": callback.texts}
        finished = manifest.model_copy(update=update | {"result_sha256": hashes_of(run.folder, training.result)})
        run.write_manifest(finished)
    except BaseException as error:
        _write_failure(run, manifest, error, callback.texts)
        raise _explained(error, run, training.experiment, again) from None
    run.forget_steps()  # outside: from here on nothing may take the result away
    write_page(RunSnapshot(run, training.experiment, finished), callback)
    return finished


def _begun(training: TrainingRun, trainer: Trainer, foreseen: Foresight | None, *, resume: bool) -> Past:
    """From here on the folder holds a run that is running."""
    run, callback, report = training.run, training.callback, training.prepared.data_report
    need_space(run.folder, training.bytes_written(trainer.state))
    manifest = Manifest(
        status="running", base_model=training.model.facts, data=facts_of(training.prepared),
        learning_rate=training.rate, backend=trainer.backend.name, lineage=training.lineage,
        anchor=None if training.anchor_text is None else facts_of_anchor(training.anchor_text),
        forecast=None if foreseen is None else foreseen.recorded(), tuning=training.tuning,
    )  # fmt: skip
    if resume:
        past = take_up(run, trainer.state, manifest, report)
        for change in filter(None, (changed_since(past.manifest), _changed_start(training))):
            callback(WarningMessage(change))
    else:
        past = Past(manifest)
        run.begin(training.experiment)
        run.write_data_report(report)
    callback.add(*past.manifest.warnings, first=True)
    past.manifest = past.manifest.model_copy(update={"warnings": callback.texts})
    run.write_manifest(past.manifest)
    callback(StatusMessage("\n".join(filter(None, (training.describe(), training.trainable.describe())))))
    for warning in report.warnings:
        callback(WarningMessage(warning))
    if resume:
        callback(StatusMessage(f"continuing after step {trainer.state.step}"))
    return past


def _changed_start(training: TrainingRun) -> str | None:
    """A sentence for a run that is resumed, where the adapter that it began with is not what it was."""
    name = training.experiment.adapter.start_from
    change = start_changed(training.lineage[-1], name) if name is not None and training.lineage else None
    return change and f"{change}; the run goes on from its checkpoint, which holds all that it needs"


def _write_failure(run: RunDirectory, manifest: Manifest, error: BaseException, warnings: tuple[str, ...]) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    problem = str(error) or type(error).__name__
    update = {"status": status, "ended": now(), "problem": problem, "warnings": warnings}
    with suppress(OSError):
        run.forget_results()
    with suppress(RankwiseError, OSError):  # a full disk may refuse this too; "running" without a lock says enough
        run.write_manifest(manifest.model_copy(update=update))


def _explained(
    error: BaseException, run: RunDirectory, experiment: Experiment, foreseen: Foresight | None
) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        result = experiment.adapter.artifact
        message = f"stopped. {run.folder} has the metrics so far, but no {result}. Use {run.ways_on}."
        return Interrupted(message, getattr(error, "exit_code", 130))
    if is_out_of_memory(error):
        return out_of_memory(foreseen, experiment.training.auto_batch)
    return error
