"""Wire data, model, adapter and loop together: from an Experiment to a finished run.

Nothing is written before everything that can be wrong beforehand has been checked: settings, rows, model, targets.

From then on the folder says what becomes of the run. The manifest says that it is running before the first step, and
that it finished after what was learned was written whole. A run that fails or is stopped keeps its metrics and its last
checkpoint and says so; it never holds an adapter or a model.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.adapters.targets import tables_of_the_head
from rankwise.base.loaded import LoadedModel
from rankwise.base.precision import choose_precision
from rankwise.base.sharding import NEEDS_PROCESSES, mesh_of
from rankwise.base.split import is_sharded
from rankwise.commands.report import write_page
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError, Interrupted, RankwiseError, RunError, is_out_of_memory, some
from rankwise.methods.loading import result_of
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.starting import Start, start_of
from rankwise.methods.starting import changed_since as start_changed
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import decided, objective_of
from rankwise.planning.processes import refuse_several
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.writing import TextWriting
from rankwise.runs.directory import FollowedRun, RunDirectory
from rankwise.runs.integrity import hashes_of, settings_hash
from rankwise.runs.manifest import BackendName, BackOff, Manifest, Products, Tuning, now
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import BackOffRecord, Callback, StatusMessage, WarningCollector, WarningMessage, silent
from rankwise.runs.resumable import Resumable
from rankwise.runs.row_facts import TargetFacts
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import need_space
from rankwise.system.launched import launched, problem_of_all
from rankwise.system.memory import limited_memory
from rankwise.system.signals import deferred, ignore_requests
from rankwise.tracking import Following, check_installed
from rankwise.training.anchor import facts_of as facts_of_anchor
from rankwise.training.anchor import text_of_run
from rankwise.training.backend import backend_named, choose_backend, choose_products, use_products
from rankwise.training.budgets import tasks_of_run
from rankwise.training.earlier_rounds import earlier_rows
from rankwise.training.hooks import back_off_together, slowed, warning_of, with_ways_on
from rankwise.training.preflight import Foresight, foresee, foresee_backend, out_of_memory, within_limit
from rankwise.training.replay import with_replay
from rankwise.training.resume import (
    Past,
    changed_since,
    ranks_before_training,
    settings_of,
    take_up_together,
    training_machine,
)
from rankwise.training.run import TrainingRun, data_facts
from rankwise.training.state import Diverged
from rankwise.training.trainer import Trainer
from rankwise.training.tuning import Trials, tune
from rankwise.training.validation import SCORERS, Validation, over_rows
from rankwise.training.validation_classes import rare_in
from rankwise.training.workload import Workload
from rankwise.training.world import LostProcessError, StoppedTogether, World, join

OWN_HEAD = "the model has a head with as many outputs already, which is trained further and not drawn anew"
NO_ROWS = (
    "validation.{0} has no effect without validation rows, and {1} rows are too few to hold out some by default. Give "
    "--held-out N or --validation-data FILE."
)
NO_SAMPLES = "no sample answers are written, since the base is split over several processes (model.sharded)"
SECONDS_TO_STOP = 10.0
"""That trackers have when a run was stopped or failed."""
OTHER_BACKEND = (
    "the run began with the {} backend and goes on with the eager one, since the base is split over several processes "
    "(model.sharded); the result may differ by rounding"
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
    use: str = ""
    """What is done next with it, as `rankwise` takes it."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise train --json` prints."""
        results = self.manifest.results
        assert results is not None, "only a finished run is returned"
        forecast = self.manifest.forecast
        return {
            "run": str(self.run.folder), self.result.name: str(self.result), **results.model_dump(),
            "validation_accuracy": results.validation_accuracy_after,
            "forecast": None if forecast is None else forecast.model_dump(), "warnings": list(self.manifest.warnings),
            "learning_rate": self.manifest.learning_rate,
            "tuning": self.manifest.tuning, "replay": self.manifest.replay,
        }  # fmt: skip


def train(
    experiment: Experiment, *, callback: Callback = silent, restart: bool = False, resume: bool = False,
    model: LoadedModel | None = None, force_memory: bool = False, force_base: bool = False,
) -> Trained:  # fmt: skip
    """Train an adapter or a whole model; the result lies in `runs/NAME`. A `model` that is loaded already saves loading
    it again; the method full learns on a copy of it. ResourceError where the plan says that it cannot fit into memory,
    unless `force_memory`. An adapter to begin with must have been trained on the same base, unless `force_base`.
    Several processes that torchrun started train together; the first of them writes, and speaks."""
    if restart and resume:
        raise ConfigError(["--restart starts again from the first step and --resume continues; give one of them."])
    check_installed(experiment.tracking.log_to)
    if launched() is not None:
        refuse_several(experiment)
    world = join()
    connect_shards(experiment, world)
    run = (RunDirectory if world.is_first else FollowedRun).named(experiment.run)
    callback = WarningCollector(callback if world.is_first else silent)
    world.wait_for_turn()
    experiment = decided(experiment, callback)
    with run.claimed(restart=restart, resume=resume) as run, limited_memory(experiment.model.memory_bytes):
        back_offs: tuple[BackOff, ...] = ()
        while True:
            resumable = Resumable(run) if resume else None
            try:
                return _trained(
                    experiment, run, callback, resumable, model, back_offs, world, force_memory, force_base
                )  # fmt: skip
            except Diverged as error:
                back_offs = back_off_together(world, run, experiment.training, error)
                if not back_offs:
                    if world.is_several:
                        ignore_requests()
                    raise
            callback(warning_of(back_offs[-1]))
            resume = back_offs[-1].to > 0
            world.wait_for_turn()


def _trained(
    experiment: Experiment, run: RunDirectory, callback: WarningCollector, resumable: Resumable | None,
    model: LoadedModel | None, back_offs: tuple[BackOff, ...], world: World, force_memory: bool, force_base: bool,
) -> Trained:  # fmt: skip
    """From what is on the disk to the end; Diverged where it may begin anew."""
    experiment, start = _final_settings(experiment, resumable, callback)
    objective = _objective(experiment, start, resumable, model, callback)
    foreseen = foresee(experiment, callback, objective.head_size)
    training_config, foreseen = within_limit(experiment, foreseen, callback)
    if foreseen is not None and resumable is None:
        foreseen.check(callback, force=force_memory)
    own_copy = method_of(experiment.adapter).own_copy
    loaded = _loaded(experiment, objective, callback) if model is None else own_copy(model)
    if loaded.quantization is not None:
        use_products(loaded.module, None)  # a model that was given may compute as an earlier run of it
    if start is not None:
        adapter = start.final_settings(experiment.adapter, loaded, callback, force_base=force_base)
        experiment = experiment.model_copy(update={"adapter": adapter})
    method = method_of(experiment.adapter)
    world.end_turn()
    untouched = loaded
    prepared, loaded = _prepared(experiment, objective, loaded, callback, world)
    if resumable is None:
        experiment, training_config = _with_defaults(experiment, training_config, prepared, objective)
    world.check_same_rows(prepared.data_report.model_dump_json())
    scorer = objective.among(SCORERS)(measured_as(experiment, callback), loaded, prepared, objective)
    rows = prepared.rows_in_pass
    config = training_config.resolved(rows, loaded.width, experiment.auto_rate)
    setup = Setup(
        config, config.total_steps(rows), prepared.trained_rows, described=f'run "{experiment.run}"',
        callback=callback, heads=objective.heads(loaded), load=objective.load,
        start=None if start is None else start.numbers(loaded.module),
        resumed_ranks=partial(ranks_before_training, resumable) if resumable is not None else None,
    )  # fmt: skip
    rounds = start.lineage if start is not None else () if resumable is None else resumable.manifest.lineage
    begins = start is None and resumable is None and not loaded.own_head
    if begins and (fitted := objective.fit_head(loaded, prepared.trained_rows)):
        callback(StatusMessage(fitted))
    tasks = tasks_of_run(config, loaded, prepared.data_report)
    trials = Trials(experiment, loaded, method, objective, setup, prepared, world)
    chosen = run.manifest().tuning if back_offs else None
    if (tuning := chosen or _tuning(trials, resumable, foreseen, callback)) is not None:
        config = config.model_copy(update={"learning_rate": tuning.learning_rate})
    trainable = method.attach(loaded, replace(setup, training=config))
    try:
        training = TrainingRun(
            experiment, config, run, loaded, method, trainable, prepared, scorer,
            _workload(loaded, trainable, objective, config, prepared, experiment, callback), callback,
            rounds, text_of_run(config, loaded, trainable, callback, world), tasks, tuning, world,
            earlier_rows(experiment, untouched, callback, world),
        )  # fmt: skip
        result = training.result
        manifest = record(training, foreseen, resumable, force_memory=force_memory, back_offs=back_offs)
        world.barrier()  # what the first one wrote is there for all
        tuned = result_of(experiment.adapter).after_training(loaded, result)
        return Trained(RunDirectory(run.folder), manifest, result, tuned, trainable, objective.use)
    except BaseException:
        trainable.remove()  # a model that was given is to be what it was
        use_products(loaded.module, None)
        raise


def _final_settings(
    experiment: Experiment, resumable: Resumable | None, callback: Callback
) -> tuple[Experiment, Start | None]:
    """The settings of the run that goes on, or those that the adapter to begin with leaves open."""
    if resumable is not None:
        return settings_of(resumable, experiment), None
    start = start_of(experiment.adapter.start_from, callback)
    if start is None:
        return experiment, None
    return experiment.model_copy(update={"adapter": start.planned_settings(experiment.adapter)}), start


def _with_defaults(
    experiment: Experiment, training: TrainingConfig, prepared: Prepared, objective: Objective
) -> tuple[Experiment, TrainingConfig]:
    """The settings with the defaults that follow from the rows. ConfigError where a setting needs validation rows and
    there are none; of few rows none are held out by default."""
    measured = bool(len(prepared.validation))
    if not measured and (needing := experiment.validation.needing_rows):
        raise ConfigError([NO_ROWS.format(needing[0], prepared.data_report.used)])
    experiment = experiment.with_defaults(rows=len(prepared.trained), has_validation=measured, by=objective.best_by)
    return experiment, training.model_copy(update={"epochs": experiment.training.epochs})


def _objective(
    experiment: Experiment, start: Start | None, resumable: Resumable | None, model: LoadedModel | None,
    callback: Callback,
) -> Objective:  # fmt: skip
    """What a row means, once it suits the adapter to begin with and a model that is loaded already. A head that goes on
    reads what it read; that of somebody else's adapter what the model's own code does."""
    begun = start.source if start is not None else resumable and resumable.checkpoint.data_report
    pooling = None if begun is None else (begun.targets or TargetFacts()).pooling
    objective = objective_of(experiment, callback, pooling)
    if experiment.model.sharded and (refusal := experiment.objective_settings.no_shards):
        raise ConfigError([refusal.format(experiment.objective)])
    if start is not None:
        start.check_targets(objective.facts, callback)
    if model is not None and (problem := _misfit(model, experiment, objective)):
        raise ConfigError([problem])
    return objective


def _workload(
    loaded: LoadedModel, trainable: Trainable, objective: Objective, config: TrainingConfig, prepared: Prepared,
    experiment: Experiment, callback: WarningCollector,
) -> Workload:  # fmt: skip
    """What each step computes, after a warning where what learns changes more than it seems to."""
    if shared := tables_of_the_head(loaded.module, trainable.names):
        callback(WarningMessage(_shared(shared)))
    return Workload.of(
        loaded.module, trainable, objective, config, prepared, experiment.data.packing, callback,
        varied=experiment.images.augmentation != "none",
    )  # fmt: skip


def _misfit(model: LoadedModel, experiment: Experiment, objective: Objective) -> str | None:
    """Why a model that is loaded already cannot be trained in this experiment."""
    if refusal := objective.cannot.get("trained from a loaded model"):
        return refusal
    spec = model.config if model.quantization is not None else model.config.model_copy(update={"quantize": "none"})
    if experiment.base.new_tokens != model.config.new_tokens:
        return "the given model has other new tokens than the training has (model.new_tokens); give the model's name."
    if experiment.base not in (model.config, spec):  # weights in full are the same by either setting
        return f'the given model is "{model.config.name}", but the experiment names another one: {experiment.base}.'
    return None


def _prepared(
    experiment: Experiment, objective: Objective, model: LoadedModel, callback: Callback, world: World
) -> tuple[Prepared, LoadedModel]:
    """The rows, which the first process of a machine encodes for the others, and the model with the template that they
    are written with."""
    writing = objective.row_encoding(model)
    world.wait_for_turn()
    prepared = prepare(experiment.data, writing, callback, world.check_own_stop)
    world.end_turn()
    refuse_fatal(prepared.data_report)
    if note := objective.format_notes.get(prepared.data_report.format):
        callback(StatusMessage(note))
    used = writing.by(experiment.data)
    if not isinstance(used, TextWriting):
        return prepared, model
    model = model.with_template(used.template)
    world.wait_for_turn()
    replayed = with_replay(prepared, experiment, model, writing, callback)
    world.end_turn()
    return replayed, model


def _loaded(experiment: Experiment, objective: Objective, callback: Callback) -> LoadedModel:
    loaded = objective.load(experiment.base, callback)
    if loaded.own_head:
        callback(StatusMessage(OWN_HEAD))
    return loaded


def _tuning(
    trials: Trials, resumable: Resumable | None, forecast: Foresight | None, callback: Callback
) -> Tuning | None:
    """How trials choose the learning rate, or chose it when the run that is resumed began; None without `tune`."""
    if trials.experiment.training.learning_rate != "tune":
        return None
    if resumable is None:
        with deferred(trials.world.is_several):
            return tune(trials, forecast, callback)
    if (chosen := resumable.manifest.tuning) is None:
        raise RunError(f"{resumable.run.folder} does not record the learning rate that trials chose. Use --restart.")
    return chosen


def _shared(paths: list[str]) -> str:
    return (
        f"{some(paths)} shares its weight with the output head, and the adapter changes the embedding alone. Other "
        "programs that merge it would change both; `rankwise export --format merged` separates them first"
    )


def connect_shards(experiment: Experiment, world: World) -> None:
    """ConfigError with all settings that do not go with a sharded base. Else all processes connect for it."""
    if not experiment.model.sharded:
        return
    if not world.is_several:
        raise ConfigError([NEEDS_PROCESSES])
    if problems := _problems(experiment):
        raise ConfigError(problems)
    mesh_of(choose_precision(experiment.base).device.type)


def _problems(experiment: Experiment) -> list[str]:
    training, validation = experiment.training, experiment.validation
    backend = training.backend
    refused = {
        f"training.backend={backend} (--backend {backend})": backend not in ("auto", "eager"),
        "training.auto_batch (--auto-batch)": training.auto_batch,
        "training.learning_rate=tune (--tune)": training.learning_rate == "tune",
        "training.anchor (--anchor, --forget-at-most)": training.anchor is not None,
        "training.replay (--replay)": training.replay is not None,
        "training.on_divergence=back-off": training.on_divergence == "back-off",
        "validation.answers, which are generated": bool(validation.answers),
        "validation.prompts": bool(validation.prompts),
    }
    advice = "yet. Leave it out, or train without --shard."
    names = [*experiment.adapter.unsharded, *(name for name, used in refused.items() if used)]
    return [f"model.sharded (--shard) cannot be used with {name} {advice}" for name in names]


def measured_as(experiment: Experiment, callback: Callback) -> ValidationConfig:
    """How a run is measured: without samples of answers, which the first process would write alone."""
    validation = experiment.validation
    if not experiment.model.sharded or validation.prompts == ():
        return validation
    if experiment.data.held_out or experiment.data.validation is not None:
        callback(StatusMessage(NO_SAMPLES))
    return validation.model_copy(update={"prompts": ()})


def record(
    training: TrainingRun, forecast: Foresight | None, resumable: Resumable | None, *, force_memory: bool,
    back_offs: tuple[BackOff, ...] = (),
) -> Manifest:  # fmt: skip
    """Begin the run or take it up, and train; however it ends, the manifest says so. `back_offs` are those of a run
    that begins again."""
    run, callback = training.run, training.callback
    training.check()
    work, world = training.work, training.world
    backend = backend_named(_backend_of(training, forecast, resumable), work)
    backend = over_rows(backend, work.objective)
    packed = training.model.quantization is not None or training.config.matmul == "int8"
    products = _products_of(training, forecast, resumable) if packed else None
    training = training.with_reference(backend, resumable)
    again = foresee_backend(forecast, backend.name, callback)
    if again is not None and again is not forecast and resumable is None:
        again.check(callback, force=force_memory)
    log, validation = MetricsLog(run.metrics), training.validation(backend)
    trainer = training.trainer(backend, validation, log)
    past = _begun(training, trainer, again, resumable, back_offs, products)
    trackers = _trackers(training, log, went_back=bool(back_offs))
    manifest = past.manifest
    for hook in trainer.hooks:
        hook.take_up(past.history)
    slowed(trainer.state, manifest)
    callback.changed = lambda texts: run.write_manifest(manifest.model_copy(update={"warnings": texts}))
    try:
        begun_again = back_offs if resumable is None else ()
        finished = _completed(training, trainer, log, past, validation, begun_again)
        if finished is None:
            return manifest
    except BaseException as error:
        callback.changed = lambda texts: None  # what is written from here on knows more than this process's manifest
        error = world.explained(error)
        if isinstance(error, Diverged):
            error = with_ways_on(error, run, training.config, manifest.back_offs)
        if world.is_several and not isinstance(error, Diverged):  # which may begin again
            ignore_requests()  # the end has begun, and another may ask for it as well
        _write_failure(run, manifest, error, callback.texts)
        trackers.end(SECONDS_TO_STOP)
        if isinstance(error, StoppedTogether):
            world.barrier()  # so that none is gone while the first one writes
        raise _explained(error, run, training.experiment, again) from None
    try:  # outside: from here on nothing may take the result away
        run.forget_steps()
    except (RankwiseError, OSError) as error:
        callback(WarningMessage(f"the run is finished, but what only training needs could not be removed: {error}"))
    write_page(RunSnapshot(run, training.experiment, finished), callback)
    trackers.end()
    return finished


def _completed(
    training: TrainingRun, trainer: Trainer, log: MetricsLog, past: Past, validation: Validation,
    back_offs: tuple[BackOff, ...],
) -> Manifest | None:  # fmt: skip
    """Make the steps that are left and write the result; None in processes that only give their part of it."""
    run, callback, world = training.run, training.callback, training.world
    with log, deferred(world.is_several):
        for one in back_offs if world.is_first else ():
            log.append(BackOffRecord(0, one.begun, one.learning_rate).as_row())
        records = [*past.history.steps, *trainer.run()]
        if world.is_first:
            log.sync()  # a finished run has all its records, even after a power failure
    results = training.results(records, validation, past.seconds + trainer.seconds)
    for hook in trainer.hooks:
        results = hook.recorded(results)
    if not world.is_first:
        training.give_parts()
        return None
    rate = past.manifest.back_offs[-1].learning_rate if past.manifest.back_offs else training.rate
    for warning in training.class_warnings(validation, results, rate):
        callback(WarningMessage(warning))
    results = training.save(results, past.manifest)
    callback.changed = lambda texts: None
    for line in run.write_lost():
        callback(WarningMessage(line))
    hashes = {"result_sha256": hashes_of(run.folder, training.result), "settings_sha256": settings_hash(run.folder)}
    update = {"status": "finished", "ended": now(), "results": results, "warnings": callback.texts}
    finished = past.manifest.model_copy(update=update | hashes)
    run.write_manifest(finished)
    return finished


def _trackers(training: TrainingRun, log: MetricsLog, went_back: bool) -> Following:
    """They follow the log from here on. What they report is shown and not stored: it is nothing of the run."""
    tracking, show = training.experiment.tracking, training.callback.callback
    names = tracking.log_to if training.world.is_first else ()

    def report(text: str) -> None:
        show(WarningMessage(text))

    try:
        trackers = Following(training.run, names, tracking.project, report, went_back)
    except (RankwiseError, OSError) as error:
        report(f"nothing is logged to {some(names)}: {error}")
        trackers = Following(training.run, (), tracking.project, report)
    log.follow = trackers if trackers.active else None
    return trackers


def _backend_of(training: TrainingRun, forecast: Foresight | None, resumable: Resumable | None) -> BackendName:
    """That which the run began with, or the best for a new one; over a split base there is only one. A run that the
    forecast finds too short to be compiled is not timed for it: steps of a few tokens say little where weights are
    unpacked, and the forecast has no memory for the compiler."""
    work, setting = training.work, training.config.backend
    if resumable is None:
        is_short = forecast is not None and forecast.plan.duration is not None and not forecast.plan.may_compile
        tokens = 0 if is_short else training.tokens_trained
        return training.world.share(lambda: choose_backend(work, setting, tokens).name)
    begun = resumable.manifest.backend
    if begun == "eager" or not is_sharded(work.module):
        return begun
    training.callback(WarningMessage(OTHER_BACKEND.format(begun)))
    return "eager"


def _products_of(training: TrainingRun, forecast: Foresight | None, resumable: Resumable | None) -> Products | None:
    """What the run began with, or the best for a new one; the model computes by it from here on."""
    work, rows, config = training.work, training.prepared.trained_rows, training.config
    unplanned = forecast is not None and forecast.plan.device.flags and not forecast.plan.forecast.int8
    setting = "bfloat16" if config.matmul == "auto" and unplanned else config.matmul

    def chosen() -> dict[str, Any] | None:
        if resumable is not None:
            found = resumable.manifest.products
        else:
            shown = [rows[number] for number in range(config.rows_per_step(len(rows)))]
            found = choose_products(work, setting, shown)
        return None if found is None else found.model_dump(mode="json")

    shared = training.world.share(chosen)
    products = None if shared is None else Products.model_validate(shared)
    use_products(work.module, products)
    return products


def _begun(
    training: TrainingRun, trainer: Trainer, forecast: Foresight | None, resumable: Resumable | None,
    back_offs: tuple[BackOff, ...], products: Products | None,
) -> Past:  # fmt: skip
    """From here on the folder holds a run that is running."""
    run, callback, report = training.run, training.callback, training.prepared.data_report
    if training.world.is_first:
        need_space(run.folder, training.bytes_written(trainer.state))
    manifest = Manifest(
        status="running", base_model=training.model.facts, data=data_facts(training.prepared),
        learning_rate=training.rate, backend=trainer.backend.name, lineage=training.lineage,
        anchor=None if training.anchor_text is None else facts_of_anchor(training.anchor_text),
        forecast=None if forecast is None else forecast.recorded(), tuning=training.tuning, replay=report.replay,
        back_offs=back_offs, machine=training_machine(), products=products,
    )  # fmt: skip
    if resumable is not None:
        past = take_up_together(training.world, resumable, trainer.state, manifest, report, callback)
        for change in filter(None, (changed_since(past.manifest), _changed_start(training))):
            callback(WarningMessage(change))
    else:
        past = Past(manifest)
        training.begin()
    callback.add(*past.manifest.warnings, first=True)
    past.manifest = past.manifest.model_copy(update={"warnings": callback.texts})
    run.write_manifest(past.manifest)
    callback(StatusMessage("\n".join(filter(None, (training.describe(), training.trainable.describe())))))
    for warning in (*report.warnings, *rare_in(training.scorer)):
        callback(WarningMessage(warning))
    if resumable is not None:
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
    if isinstance(error, LostProcessError) and (told := problem_of_all()) is not None:
        problem = str(told.get("error", problem))
    update = {"status": status, "ended": now(), "problem": problem, "warnings": warnings}
    with suppress(RankwiseError, OSError):  # a full disk may refuse this too; "running" without a lock says enough
        run.check_lock()  # what another process writes there is not ours to change
        run.write_manifest(manifest.model_copy(update=update))
        run.forget_results()  # only now: a manifest that could not be written may say "finished" and name these files


def _explained(
    error: BaseException, run: RunDirectory, experiment: Experiment, forecast: Foresight | None
) -> BaseException:
    if isinstance(error, LostProcessError):
        return LostProcessError(f"{error} Use {run.ways_on}.")
    if isinstance(error, KeyboardInterrupt):
        result = experiment.adapter.artifact
        message = (
            f"stopped. {run.folder} has the metrics so far, but no {result}. Use {run.ways_on}. To keep what it has "
            f"learned so far, a training is ended by rankwise runs end {run.folder.name} in another terminal."
        )
        return Interrupted(message, getattr(error, "exit_code", 130))
    if is_out_of_memory(error):
        return out_of_memory(forecast, experiment.training.auto_batch)
    return error
