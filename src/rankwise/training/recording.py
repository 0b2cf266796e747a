"""What a run's folder says of it, from its beginning to its end.

The manifest says that the run is running before the first step, and that it finished after what was learned was written
whole. A run that fails or is stopped keeps its metrics and its last checkpoint and says so; it never holds an adapter
or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

from rankwise.base.sharding import save_whole
from rankwise.base.split import is_sharded, is_split
from rankwise.errors import Interrupted, RankwiseError, is_out_of_memory
from rankwise.methods.model_card import UNKNOWN, CardFacts
from rankwise.methods.saving import save_result, training_facts
from rankwise.methods.starting import changed_since as start_changed
from rankwise.planning.forecast import SLOW_DISK
from rankwise.rows.images.processor import augmentation
from rankwise.runs.directory import REFERENCE, ClaimedRun, ways_on
from rankwise.runs.integrity import hashes_of, settings_hash
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import BackendName, BackOff, Manifest, Products, Results, now
from rankwise.runs.metrics_log import MetricsLog
from rankwise.runs.records import BackOffRecord, StatusMessage, StepRecord, WarningMessage
from rankwise.system.files import need_space
from rankwise.system.launched import problem_of_all
from rankwise.system.signals import deferred, ignore_requests
from rankwise.training.backend import backend_named, choose_backend, choose_products, use_products
from rankwise.training.checkpoints import size_of
from rankwise.training.hooks import (
    CheckpointPace,
    EndByRequest,
    FollowCheckpoints,
    LogMetrics,
    LossWatch,
    ReportHook,
    SaveCheckpoints,
    slowed,
    with_ways_on,
)
from rankwise.training.losses import Backend, PairReference
from rankwise.training.preflight import foresee_backend, out_of_memory
from rankwise.training.resume import Past, changed_since, take_up_together, training_machine
from rankwise.training.state import Diverged
from rankwise.training.trainer import Hook, Trainer
from rankwise.training.training import Extra, Training, bytes_written, class_warnings, data_facts, described, results_of
from rankwise.training.validation import COMPARED, Validation, over_rows, refuse_no_choice
from rankwise.training.validation_classes import rare_in
from rankwise.training.workload import batches_of
from rankwise.training.world import LostProcessError, StoppedTogether

SECONDS_TO_STOP = 10.0
"""How long extras may take to end when a run was stopped or failed."""
BYTES_KEPT = 12
"""Bytes of a trained parameter in a checkpoint: its value and AdamW's two averages."""
OTHER_BACKEND = (
    "the run began with the {} backend and goes on with the eager one, since the base is split over several processes "
    "(model.sharded); the result may differ by rounding"
)


def record(
    training: Training, extras: Sequence[Extra], back_offs: tuple[BackOff, ...], *, force_memory: bool
) -> Manifest:
    """Begin the run or take it up, and train; however it ends, the manifest says so. `back_offs` are those of a run
    that begins again."""
    session, resumable, forecast = training.session, training.resumable, training.forecast
    run, callback, world = session.run, session.callback, session.world
    refuse_no_choice(training.validation, training.validation_interval, training.early_stopping, training.steps)
    backend = over_rows(backend_named(_backend_of(training), training.work), training.objective)
    products = _products_of(training)
    if compare := training.objective.among(COMPARED):
        resolve_name(compare)(training, backend)
    training.forecast = again = foresee_backend(forecast, backend.name, callback)
    if again is not None and again is not forecast and resumable is None:
        again.check(callback, force=force_memory)
    log, validation = MetricsLog(run.metrics), training.validated(backend, training.prepared, training.scorer)
    trainer = _trainer(training, extras, backend, validation, log)
    past = _begun(training, extras, trainer, back_offs, products)
    for extra in extras:
        extra.follow(training, log, went_back=bool(back_offs))
    manifest = past.manifest
    for hook in trainer.hooks:
        hook.take_up(past.history)
    slowed(trainer.state, manifest)
    callback.changed = lambda texts: run.write_manifest(manifest.model_copy(update={"warnings": texts}))
    try:
        records = _trained(trainer, log, past, back_offs if resumable is None else ())
        finished = _completed(training, trainer, records, past, validation)
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
        for extra in extras:
            extra.end(SECONDS_TO_STOP)
        if isinstance(error, StoppedTogether):
            world.barrier()  # so that none is gone while the first one writes
        raise _explained(error, training) from None
    try:  # outside: from here on nothing may take the result away
        run.forget_steps()
    except (RankwiseError, OSError) as error:
        callback(WarningMessage(f"the run is finished, but what only training needs could not be removed: {error}"))
    for extra in extras:
        extra.end()
    return finished


def _trainer(
    training: Training, extras: Sequence[Extra], backend: Backend, validation: Validation, log: MetricsLog
) -> Trainer:
    """Before its first step, with everything that happens between steps. Of several processes, the first writes and
    reports."""
    config, session = training.config, training.session
    before, after = list[Hook](), list[Hook]()
    for extra in extras:
        (before if extra.first else after).extend(extra.hooks(training, backend, validation))
    watch = _watch(training)
    took = BYTES_KEPT * training.trained_parameters / SLOW_DISK
    pace = CheckpointPace(config.checkpoint_interval(training.steps), config.checkpoint_seconds, took)
    backs_off = config.on_divergence == "back-off"
    checkpoints = SaveCheckpoints(session.run, pace, config.keep_checkpoints, log, watch, backs_off)
    ends = [] if session.world.is_several else [EndByRequest(session.run, validation)]
    measures: list[Hook] = [watch, *before, validation, *after]
    follow = FollowCheckpoints(watch, gives=any(map(is_split, training.trainable.parameters())))
    own = [LogMetrics(log), *ends, *measures, checkpoints, ReportHook(session.callback)]
    vary = augmentation(training.presentation.images, config.seed)
    beside = 0 if training.anchor is None else training.anchor.length
    batches = batches_of(training.prepared, config, backend.layout, vary, session.world, beside)
    return Trainer(
        training.trainable, batches, config, backend, own if session.world.is_first else [*measures, follow],
        anchor=training.anchor, world=session.world,
    )  # fmt: skip


def _watch(training: Training) -> LossWatch:
    """It recommends the rate of `auto`, or a tenth of the run's where that is lower."""
    auto = training.config.model_copy(update={"learning_rate": "auto"})
    rate = min(training.rate / 10, auto.highest_rate(training.model.width, training.auto_rate))
    score, model = training.objective.score, training.model
    return LossWatch(score.far_above, training.rows_per_step, rate, model.vocabulary if score.chooses_tokens else None)


def _trained(trainer: Trainer, log: MetricsLog, past: Past, back_offs: tuple[BackOff, ...]) -> list[StepRecord]:
    """The records of all steps, once those that are left are made."""
    world = trainer.world
    with log, deferred(world.is_several):
        for one in back_offs if world.is_first else ():
            log.append(BackOffRecord(0, one.begun, one.learning_rate).as_row())
        records = [*past.history.steps, *trainer.run()]
        if world.is_first:
            log.sync()  # a finished run has all its records, even after a power failure
    return records


def _completed(
    training: Training, trainer: Trainer, records: Sequence[StepRecord], past: Past, validation: Validation
) -> Manifest | None:
    """Write the result; None in processes that only give their part of it."""
    session = training.session
    run, callback, begun = session.run, session.callback, past.manifest
    results = results_of(training, records, validation, past.seconds + trainer.seconds)
    for hook in trainer.hooks:
        results = hook.recorded(results)
    if not session.world.is_first:
        if any(map(is_split, training.trainable.parameters())):
            save_whole(training.model.module, None)
        return None
    rate = begun.back_offs[-1].learning_rate if begun.back_offs else training.rate
    for warning in class_warnings(training, validation, results, rate):
        callback(WarningMessage(warning))
    results = _save(training, results, begun)
    callback.changed = lambda texts: None
    for line in run.write_lost():
        callback(WarningMessage(line))
    hashes = {"result_sha256": hashes_of(run.folder, training.result), "settings_sha256": settings_hash(run.folder)}
    update = {"status": "finished", "ended": now(), "results": results, "warnings": callback.texts}
    finished = begun.model_copy(update=update | hashes)
    run.write_manifest(finished)
    return finished


def _save(training: Training, results: Results, manifest: Manifest) -> Results:
    """Write what was learned; `manifest` is that of the run so far."""
    session, folder = training.session, training.result
    session.run.check_lock()
    facts = CardFacts(
        run=session.run.folder.name, adapter=training.adapter, anchor=training.config.anchor, base=training.model.facts,
        base_licence=UNKNOWN, data_report=training.prepared.data_report, results=results, learning_rate=training.rate,
        lineage=training.lineage, forecast=manifest.forecast,
    )  # fmt: skip
    save_result(
        training.method, training.trainable, training.model, folder, facts, callback=session.callback,
        training=training_facts(training.stored, manifest), revision=training.model.config.revision,
    )  # fmt: skip
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return results.model_copy(update={"adapter_bytes": written})


def _backend_of(training: Training) -> BackendName:
    """That which the run began with, or the best for a new one; over a split base there is only one. A run that the
    forecast finds too short to be compiled is not timed for it: steps of a few tokens say little where weights are
    unpacked, and the forecast has no memory for the compiler."""
    work, session, forecast = training.work, training.session, training.forecast
    if training.resumable is None:
        is_short = forecast is not None and forecast.plan.duration is not None and not forecast.plan.may_compile
        tokens = 0 if is_short else training.tokens_trained
        return session.world.share(lambda: choose_backend(work, training.config.backend, tokens).name)
    begun = training.resumable.manifest.backend
    if begun == "eager" or not is_sharded(work.module):
        return begun
    session.callback(WarningMessage(OTHER_BACKEND.format(begun)))
    return "eager"


def _products_of(training: Training) -> Products | None:
    """What the run began with, or the best for a new one; the model computes by it from here on. None where no weights
    are packed."""
    work, rows, config, forecast = training.work, training.prepared.trained_rows, training.config, training.forecast
    if training.model.quantization is None and config.matmul != "int8":
        return None
    unplanned = forecast is not None and forecast.plan.device.flags and not forecast.plan.forecast.int8
    setting = "bfloat16" if config.matmul == "auto" and unplanned else config.matmul

    def chosen() -> dict[str, Any] | None:
        if training.resumable is not None:
            found = training.resumable.manifest.products
        else:
            shown = [rows[number] for number in range(config.rows_per_step(len(rows)))]
            found = choose_products(work, setting, shown)
        return None if found is None else found.model_dump(mode="json")

    shared = training.session.world.share(chosen)
    products = None if shared is None else Products.model_validate(shared)
    use_products(work.module, products)
    return products


def _begun(
    training: Training, extras: Sequence[Extra], trainer: Trainer, back_offs: tuple[BackOff, ...],
    products: Products | None,
) -> Past:  # fmt: skip
    """From here on the folder holds a run that is running."""
    session, report, resumable = training.session, training.prepared.data_report, training.resumable
    run, callback, forecast = session.run, session.callback, training.forecast
    if session.world.is_first:
        need_space(run.folder, bytes_written(training, size_of(trainer.state)))
    manifest = Manifest(
        status="running", base_model=training.model.facts, data=data_facts(training.prepared),
        learning_rate=training.rate, backend=trainer.backend.name, lineage=training.lineage,
        forecast=None if forecast is None else forecast.recorded(), replay=report.replay, back_offs=back_offs,
        machine=training_machine(), products=products,
        **dict(fact for extra in extras for fact in extra.facts().items()),
    )  # fmt: skip
    if resumable is not None:
        past = take_up_together(session.world, resumable, trainer.state, manifest, report, callback)
        begun_with = _changed_start(training.lineage, training.adapter.start_from)
        for change in filter(None, (changed_since(past.manifest), begun_with)):
            callback(WarningMessage(change))
    else:
        past = Past(manifest)
        run.begin(training.stored)
        run.write_data_report(report)
        if (values := training.prepared.sequences.references) is not None:
            run.write(REFERENCE, PairReference(values).facts)
    callback.add(*past.manifest.warnings, first=True)
    past.manifest = past.manifest.model_copy(update={"warnings": callback.texts})
    run.write_manifest(past.manifest)
    about = described(training, [extra.about for extra in extras])
    callback(StatusMessage("\n".join(filter(None, (about, training.trainable.describe())))))
    for warning in (*report.warnings, *rare_in(training.scorer)):
        callback(WarningMessage(warning))
    if resumable is not None:
        callback(StatusMessage(f"continuing after step {trainer.state.step}"))
    return past


def _changed_start(lineage: Sequence[Round], name: str | None) -> str | None:
    """A sentence for a run that is resumed, where the adapter `name` that it began with is not what it was."""
    change = start_changed(lineage[-1], name) if name is not None and lineage else None
    return change and f"{change}; the run goes on from its checkpoint, which holds all that it needs"


def _write_failure(run: ClaimedRun, manifest: Manifest, error: BaseException, warnings: tuple[str, ...]) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    problem = str(error) or type(error).__name__
    if isinstance(error, LostProcessError) and (told := problem_of_all()) is not None:
        problem = str(told.get("error", problem))
    update = {"status": status, "ended": now(), "problem": problem, "warnings": warnings}
    with suppress(RankwiseError, OSError):  # a full disk may refuse this too; "running" without a lock says enough
        run.check_lock()  # what another process writes there is not ours to change
        run.write_manifest(manifest.model_copy(update=update))
        run.forget_results()  # only now: a manifest that could not be written may say "finished" and name these files


def _explained(error: BaseException, training: Training) -> BaseException:
    run = training.session.run
    if isinstance(error, LostProcessError):
        return LostProcessError(f"{error} Use {ways_on(run)}.")
    if isinstance(error, KeyboardInterrupt):
        message = (
            f"stopped. {run.folder} has the metrics so far, but no {training.adapter.artifact}. Use {ways_on(run)}. To "
            f"keep what it has learned so far, a training is ended by rankwise runs end {run.folder.name} in another "
            "terminal."
        )
        return Interrupted(message, getattr(error, "exit_code", 130))
    if is_out_of_memory(error):
        return out_of_memory(training.forecast, training.config.auto_batch)
    return error
