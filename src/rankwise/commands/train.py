"""Wire data, model, adapter and loop together: from an Experiment to a finished run.

Nothing is written before everything that can be wrong beforehand has been checked: settings, rows, model, targets.
What is written from then on is in recorded_run.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rankwise.adapters.targets import tables_of_the_head
from rankwise.base.loaded import LoadedModel
from rankwise.base.precision import choose_precision
from rankwise.base.sharding import NEEDS_PROCESSES, mesh_of
from rankwise.commands.plan import refuse_several
from rankwise.commands.recorded_run import record
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError, RunError, some
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.starting import Start, start_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import decided, objective_of
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.writing import TextWriting
from rankwise.runs.directory import FollowedRun, RunDirectory
from rankwise.runs.manifest import BackOff, Manifest, Tuning
from rankwise.runs.records import Callback, StatusMessage, WarningCollector, WarningMessage, silent
from rankwise.runs.resumable import Resumable
from rankwise.runs.row_facts import TargetFacts
from rankwise.system.launched import launched
from rankwise.system.memory import limited_memory
from rankwise.system.signals import deferred, ignore_requests
from rankwise.tracking import check_installed
from rankwise.training.anchor import text_of_run
from rankwise.training.budgets import tasks_of_run
from rankwise.training.earlier_rounds import earlier_rows
from rankwise.training.hooks import back_off_together, warning_of
from rankwise.training.preflight import Foresight, foresee, within_limit
from rankwise.training.replay import with_replay
from rankwise.training.resume import ranks_before_training, settings_of
from rankwise.training.run import TrainingRun
from rankwise.training.state import Diverged
from rankwise.training.tuning import Trials, tune
from rankwise.training.validation import SCORERS
from rankwise.training.workload import Workload
from rankwise.training.world import World, join

OWN_HEAD = "the model has a head with as many outputs already, which is trained further and not drawn anew"
NO_ROWS = (
    "validation.{0} has no effect without validation rows, and {1} rows are too few to hold out some by default. Give "
    "--held-out N or --validation-data FILE."
)
NO_SAMPLES = "no sample answers are written, since the base is split over several processes (model.sharded)"


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
    experiment, start = _settled(experiment, resumable, callback)
    objective = _objective(experiment, start, resumable, model, callback)
    foreseen = foresee(experiment, callback, objective.head_size)
    training_config, foreseen = within_limit(experiment, foreseen, callback)
    if foreseen is not None and resumable is None:
        foreseen.check(callback, force=force_memory)
    own_copy = method_of(experiment.adapter).own_copy
    loaded = _loaded(experiment, objective, callback) if model is None else own_copy(model)
    if start is not None:
        experiment = start.settled(experiment, loaded, callback, force_base=force_base)
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
        callback=callback, heads=objective.heads(loaded), load=objective.load, start=start,
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
        tuned = method.tuned(loaded, result)
        return Trained(RunDirectory(run.folder), manifest, result, tuned, trainable, objective.use)
    except BaseException:
        trainable.remove()  # a model that was given is to be what it was
        raise


def _settled(
    experiment: Experiment, resumable: Resumable | None, callback: Callback
) -> tuple[Experiment, Start | None]:
    """The settings of the run that goes on, or those that the adapter to begin with leaves open."""
    if resumable is not None:
        return settings_of(resumable, experiment), None
    start = start_of(experiment, callback)
    return (experiment if start is None else start.foreseen(experiment)), start


def _with_defaults(
    experiment: Experiment, training: TrainingConfig, prepared: Prepared, objective: Objective
) -> tuple[Experiment, TrainingConfig]:
    """Those that follow from the rows. ConfigError where a setting needs validation rows, which few rows do
    not give by default."""
    measured = bool(len(prepared.measured))
    if not measured and (needing := experiment.validation.needing_rows):
        raise ConfigError([NO_ROWS.format(needing[0], prepared.data_report.used)])
    experiment = experiment.with_defaults(measured=measured, by=objective.best_by)
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
    writing = objective.writing(model)
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
    trials: Trials, resumable: Resumable | None, foreseen: Foresight | None, callback: Callback
) -> Tuning | None:
    """How trials choose the learning rate, or chose it when the run that is resumed began; None without `tune`."""
    if trials.experiment.training.learning_rate != "tune":
        return None
    if resumable is None:
        with deferred(trials.world.is_several):
            return tune(trials, foreseen, callback)
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
