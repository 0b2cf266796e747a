"""What the folder of a run says of it, from its beginning to its end.

The manifest says that it is running before the first step, and that it finished after what was learned was written
whole. A run that fails or is stopped keeps its metrics and its last checkpoint and says so; it never holds an adapter
or a model.
"""

from __future__ import annotations

from contextlib import suppress

from rankwise.base.split import is_sharded
from rankwise.commands.report import write_page
from rankwise.config.experiment import Experiment
from rankwise.errors import Interrupted, RankwiseError, is_out_of_memory, some
from rankwise.methods.starting import changed_since as start_changed
from rankwise.runs.directory import RunDirectory
from rankwise.runs.integrity import hashes_of, settings_hash
from rankwise.runs.manifest import BackendName, BackOff, Manifest, now
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import BackOffRecord, StatusMessage, WarningMessage
from rankwise.runs.resumable import Resumable
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import need_space
from rankwise.system.launched import problem_of_all
from rankwise.system.signals import deferred, ignore_requests
from rankwise.tracking import Following
from rankwise.training.anchor import facts_of as facts_of_anchor
from rankwise.training.backend import backend_named, choose_backend
from rankwise.training.earlier_rounds import EarlierRounds
from rankwise.training.hooks import slowed, with_ways_on
from rankwise.training.preflight import Foresight, foresee_backend, out_of_memory
from rankwise.training.resume import Past, changed_since, take_up_together, training_machine
from rankwise.training.run import Budget, TrainingRun, data_facts
from rankwise.training.state import Diverged
from rankwise.training.trainer import Trainer
from rankwise.training.validation import Validation, over_rows
from rankwise.training.validation_classes import rare_in
from rankwise.training.world import LostProcessError, StoppedTogether

SECONDS_TO_STOP = 10.0
"""That trackers have when a run was stopped or failed."""
OTHER_BACKEND = (
    "the run began with the {} backend and goes on with the eager one, since the base is split over several processes "
    "(model.sharded); the result may differ by rounding"
)


def record(
    training: TrainingRun, foreseen: Foresight | None, resumable: Resumable | None, *, force_memory: bool,
    back_offs: tuple[BackOff, ...] = (),
) -> Manifest:  # fmt: skip
    """Begin the run or take it up, and train; however it ends, the manifest says so. `back_offs` are those of a run
    that begins again."""
    run, callback = training.run, training.callback
    training.check()
    work, world = training.work, training.world
    backend = backend_named(_backend_of(training, resumable), work)
    backend = over_rows(backend, work.objective)
    training = training.with_reference(backend, resumable)
    again = foresee_backend(foreseen, backend.name, callback)
    if again is not None and again is not foreseen and resumable is None:
        again.check(callback, force=force_memory)
    log, validation = MetricsLog(run.metrics), training.validation(backend)
    anchor = training.anchor(backend)
    budget = training.budget(anchor, validation)
    watch, earlier = training.watch(), training.earlier(backend)
    trainer = training.trainer(backend, validation, log, anchor, budget, watch, earlier)
    past = _begun(training, trainer, again, resumable, back_offs)
    trackers = _trackers(training, log, went_back=bool(back_offs))
    manifest, validation.records, earlier.records = past.manifest, past.validations, past.earlier
    watch.take_up(past.steps, past.validations)
    slowed(trainer.state, manifest)
    if budget is not None:
        budget.take_up(past.budget)
    callback.changed = lambda texts: run.write_manifest(manifest.model_copy(update={"warnings": texts}))
    try:
        begun_again = back_offs if resumable is None else ()
        finished = _completed(training, trainer, log, past, validation, earlier, budget, begun_again)
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
    earlier: EarlierRounds, budget: Budget | None, back_offs: tuple[BackOff, ...],
) -> Manifest | None:  # fmt: skip
    """Make the steps that are left and write the result; None in processes that only give their part of it."""
    run, callback, world = training.run, training.callback, training.world
    with log, deferred(world.is_several):
        for one in back_offs if world.is_first else ():
            log.append(BackOffRecord(0, one.begun, one.learning_rate).as_row())
        records = [*past.steps, *trainer.run()]
        if world.is_first:
            log.sync()  # a finished run has all its records, even after a power failure
    results = training.results(records, validation, past.seconds + trainer.seconds)
    results = results.model_copy(update={"earlier_rounds": earlier.outcomes()})
    if not world.is_first:
        training.give_parts()
        return None
    rate = past.manifest.back_offs[-1].learning_rate if past.manifest.back_offs else training.rate
    for warning in training.class_warnings(validation, results, rate):
        callback(WarningMessage(warning))
    results = training.save(results if budget is None else budget.recorded(results))
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


def _backend_of(training: TrainingRun, resumable: Resumable | None) -> BackendName:
    """That which the run began with, or the best for a new one; over a split base there is only one."""
    work, setting = training.work, training.config.backend
    if resumable is None:
        return training.world.share(lambda: choose_backend(work, setting, training.tokens_trained).name)
    begun = resumable.manifest.backend
    if begun == "eager" or not is_sharded(work.module):
        return begun
    training.callback(WarningMessage(OTHER_BACKEND.format(begun)))
    return "eager"


def _begun(
    training: TrainingRun, trainer: Trainer, foreseen: Foresight | None, resumable: Resumable | None,
    back_offs: tuple[BackOff, ...],
) -> Past:  # fmt: skip
    """From here on the folder holds a run that is running."""
    run, callback, report = training.run, training.callback, training.prepared.data_report
    if training.world.is_first:
        need_space(run.folder, training.bytes_written(trainer.state))
    manifest = Manifest(
        status="running", base_model=training.model.facts, data=data_facts(training.prepared),
        learning_rate=training.rate, backend=trainer.backend.name, lineage=training.lineage,
        anchor=None if training.anchor_text is None else facts_of_anchor(training.anchor_text),
        forecast=None if foreseen is None else foreseen.recorded(), tuning=training.tuning, replay=report.replay,
        back_offs=back_offs, machine=training_machine(),
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
    error: BaseException, run: RunDirectory, experiment: Experiment, foreseen: Foresight | None
) -> BaseException:
    if isinstance(error, LostProcessError):
        return LostProcessError(f"{error} Use {run.ways_on}.")
    if isinstance(error, KeyboardInterrupt):
        result = experiment.adapter.artifact
        message = f"stopped. {run.folder} has the metrics so far, but no {result}. Use {run.ways_on}."
        return Interrupted(message, getattr(error, "exit_code", 130))
    if is_out_of_memory(error):
        return out_of_memory(foreseen, experiment.training.auto_batch)
    return error
