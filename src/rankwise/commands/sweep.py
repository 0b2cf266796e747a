"""`rankwise sweep`: train once for each combination of some settings, or for as many as are asked for.

Each trial is an ordinary run `runs/NAME-001`, `NAME-002`, … . Which values it has is decided by Optuna, whose journal
lies in `sweeps/NAME` with the page: the same command goes on with a sweep that was stopped, and a run that was stopped
goes on from its checkpoint. The loss that is compared is that of the validation rows. Every outcome is
added to the journal at once.

Optuna is an extra (`rankwise[sweep]`), and this is the only module that imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.commands.report import write_document
from rankwise.commands.train import train
from rankwise.config.base import JsonObject
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.reading import Setting
from rankwise.config.sweep import Axis, grid, settings_of
from rankwise.errors import ConfigError, RunError, TrainingError, first_line, some
from rankwise.reporting.sweep import sweep_report
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import leaves
from rankwise.runs.own_files import is_run
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.sweeps import SweepRecord, SweptTrial, shown
from rankwise.system.extras import installs

MOST_TRIALS = 1000
NO_LOSSES = (
    "a sweep compares validation losses: take validation rows from the training rows with --held-out, or name a file "
    "with --validation-data."
)
ExperimentOf = Callable[[list[Setting]], Experiment]
"""The experiment of a command line with further settings."""
JOURNAL, SETTINGS_KEY = "journal.log", "rankwise"


@dataclass(frozen=True)
class SweepOutcome:
    number: int
    values: dict[str, Any]
    loss: float | None


@dataclass
class Study:
    study: Any
    """Optuna's."""
    distributions: dict[str, Any]
    method: str

    @classmethod
    def opened(
        cls, folder: Path, axes: list[Axis], planned: list[dict[str, Any]], *, seed: int, settings: dict[str, Any]
    ) -> Study:
        """A new study, or the one that lies in the folder. RunError where that has other settings."""
        optuna = _optuna()
        folder.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        )  # fmt: skip
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(study_name=folder.name, storage=storage, sampler=sampler, load_if_exists=True)
        method = "grid" if planned else "TPE of Optuna"
        settings = settings | {"method": method}
        begun = study.user_attrs.get(SETTINGS_KEY)
        if begun is None:
            for values in planned:
                study.enqueue_trial(values)
            study.set_user_attr(SETTINGS_KEY, settings)
        elif begun != settings:
            differing = ", ".join(f"{part}" for part in settings if begun.get(part) != settings[part])
            raise RunError(
                f"{folder} was begun with other settings ({differing}), and its trials cannot be compared with new "
                "ones. Choose another name with --run, or remove the folder."
            )
        # a sampler that goes on must not repeat the values that it began with
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        return cls(study, {axis.key: _distribution(optuna, axis, grid=bool(planned)) for axis in axes}, method)

    @property
    def finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.trials)

    def next(self, count: int) -> tuple[int, dict[str, Any]] | None:
        """The number and the values of a trial to run: one that a process left behind, or a new one; None after `count`
        of them."""
        for trial in self.study.trials:
            if trial.state.name == "RUNNING" and len(trial.params) == len(self.distributions):
                return trial.number, dict(trial.params)
        if self.finished >= count:
            return None
        trial = self.study.ask(self.distributions)
        return trial.number, dict(trial.params)

    def tell(self, number: int, loss: float | None) -> None:
        """None where the run failed."""
        state = _optuna().trial.TrialState
        self.study.tell(number, loss, state=state.FAIL if loss is None else state.COMPLETE)

    def outcomes(self) -> Iterator[SweepOutcome]:
        for trial in self.study.trials:
            if trial.state.is_finished():
                yield SweepOutcome(trial.number, dict(trial.params), trial.value)


def _distribution(optuna: Any, axis: Axis, *, grid: bool) -> Any:
    if grid or not axis.is_range:
        return optuna.distributions.CategoricalDistribution(axis.points)
    if axis.integer:
        return optuna.distributions.IntDistribution(axis.low, axis.high, log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise ConfigError([f"a sweep needs Optuna, which is not installed: {installs('sweep')}."]) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Swept:
    record: SweepRecord
    folder: Path
    page: Path

    def summary(self) -> dict[str, Any]:
        """What `rankwise sweep --json` prints."""
        return {
            "sweep": self.folder, "page": self.page, "best": self.record.best,
            "flat": {key: self.record.flat(key) for key in self.record.axes}, **dict(self.record),
        }  # fmt: skip


def sweep(
    experiment_of: ExperimentOf, axes: list[Axis], trials: int | None = None, *, callback: Callback = silent
) -> Swept:
    """`trials`: as many as Optuna chooses; None for the whole grid."""
    base = experiment_of([])
    planned = grid(axes) if trials is None else []
    check(experiment_of, base.data, axes, planned)
    folder, count = Path("sweeps") / base.run, len(planned) if trials is None else trials
    over = {axis.key: axis.describe() for axis in axes}
    # what must be the same when a sweep goes on; more trials may be asked for
    settings = {key: value for key, value in leaves(base.model_dump(mode="json")).items() if value is not None}
    study = Study.opened(folder, axes, planned, seed=base.training.seed, settings={"settings": settings, "over": over})
    began, begun_with = time.monotonic(), study.finished
    while (trial := study.next(count)) is not None:
        number, values = trial
        callback(StatusMessage(_progress(number, count, values, time.monotonic() - began, study.finished - begun_with)))
        run = RunDirectory.named(_name(base.run, number))
        try:
            study.tell(number, _trained(experiment_of, values, run, callback))
        except TrainingError as error:  # such as a rate at which the loss is no longer a number
            callback(StatusMessage(f"{run.folder.name} failed: {first_line(error)}"))
            study.tell(number, None)
    record = SweepRecord(
        name=base.run, axes=over, method=study.method, planned=count,
        trials=tuple(_swept(outcome, _name(base.run, outcome.number)) for outcome in study.outcomes()),
    )  # fmt: skip
    page = folder / "sweep.html"
    write_document(sweep_report(record), page)
    return Swept(record, folder, page)


def check(experiment_of: ExperimentOf, data: DataConfig, axes: list[Axis], planned: list[dict[str, Any]]) -> None:
    """ConfigError with all that is wrong, before anything is trained."""
    problems: list[str] = []
    if not axes:
        problems.append("a sweep needs a setting to vary, such as --over training.learning_rate=1e-4..1e-2.")
    keys = [axis.key for axis in axes]
    problems += [f"--over names {key} twice." for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if not data.held_out and data.validation is None:
        problems.append(NO_LOSSES)
    problems += [f"{key} cannot be varied, because it names the rows that losses are compared on."
                 for key in keys if key.startswith("data.held_out") or key in ("data.validation", "run")]  # fmt: skip
    if len(planned) > MOST_TRIALS:
        problems.append(f"the grid has {len(planned):,} combinations; give a number of --trials instead.")
    if problems:
        raise ConfigError(problems)
    ends = [{axis.key: value} for axis in axes for value in (axis.points if axis.is_range else axis.values)]
    for values in [*ends, *planned]:
        try:
            experiment_of(settings_of(values))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _trained(
    experiment_of: ExperimentOf, values: dict[str, Any], run: RunDirectory, callback: Callback
) -> float | None:
    """The validation loss of a run, which may be finished already, or be stopped and go on."""
    experiment = experiment_of([*settings_of(values), Setting("run", run.folder.name, "--run")])
    is_begun = is_run(run.folder)
    if is_begun and (snapshot := RunSnapshot.of(run)).manifest.status == "finished":
        _refuse_other(snapshot, experiment.model_dump(mode="json"))
        assert snapshot.manifest.results is not None, "it is finished"
        return snapshot.manifest.results.validation_loss_after
    going_on = is_begun and bool(run.steps_saved)
    trained = train(experiment, callback=callback, resume=going_on, restart=is_begun and not going_on)
    assert trained.manifest.results is not None, "only a finished run is returned"
    if trained.manifest.results.validation_loss_after is None:
        raise ConfigError([NO_LOSSES])
    return trained.manifest.results.validation_loss_after


def _refuse_other(snapshot: RunSnapshot, settings: JsonObject) -> None:
    old, new = leaves(snapshot.experiment.model_dump(mode="json")), leaves(settings)
    differing = [key for key in old | new if key != "objective" and old.get(key) != new.get(key)]
    if differing:
        raise RunError(
            f'run "{snapshot.name}" exists already, with other settings than this sweep ({some(differing, 4)}). Choose '
            "another name for the sweep with --run."
        )


def _name(sweep: str, number: int) -> str:
    return f"{sweep}-{number + 1:03d}"


def _swept(outcome: SweepOutcome, run: str) -> SweptTrial:
    """With what the run itself records of time and problems; it may have been removed since."""
    directory = RunDirectory.named(run)
    manifest = directory.manifest() if is_run(directory.folder) else None
    results = manifest and manifest.results
    return SweptTrial(
        number=outcome.number, run=run, values=outcome.values, loss=outcome.loss,
        seconds=results.train_seconds if results else None,
        problem=manifest.problem.splitlines()[0] if manifest and manifest.problem else None,
    )  # fmt: skip


def _progress(number: int, count: int, values: dict[str, Any], seconds: float, done: int) -> str:
    left = "" if not done else f", about {seconds / done * (count - number) / 60:.0f} min left"
    listed = ", ".join(f"{key}={shown(value)}" for key, value in values.items())
    return f"trial {number + 1} of {count}{left}: {listed}"
