"""An unfinished run goes on from its last checkpoint, with the same settings, data and base model, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from rankwise.config.experiment import Experiment
from rankwise.errors import RunError, some
from rankwise.methods.starting import continued
from rankwise.objectives.registry import objective_for
from rankwise.runs.data_report import DataReport
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import leaves
from rankwise.runs.manifest import Manifest, Resumed, machine
from rankwise.runs.metrics_log import History, first_lines, history_of, line_of, read_history, read_metrics_log
from rankwise.runs.own_files import DamagedStep
from rankwise.runs.records import BackOffRecord, Callback, RankRecord, WarningMessage
from rankwise.runs.resumable import METRICS, Resumable
from rankwise.training.checkpoints import restore
from rankwise.training.state import TrainState
from rankwise.training.validation import check_best, validations_in
from rankwise.training.world import World

SAID_OF_ROWS: Mapping[str, Any] = {
    **dict.fromkeys(("warnings", "advice", "hold_out", "labels", "distinct_labels", "unused_columns", "licence"), True),
    "files": {"__all__": {"layout", "licence", "row_hashes"}},
}
"""Fields of a data report that a resumed run does not compare: they follow from the rows and the settings, or
earlier versions lack them or read them differently."""
ANY = (
    "model.memory", "model.sharded", "training.checkpoint_minutes", "training.keep_checkpoints",
    "training.on_divergence", "tracking.log_to", "tracking.project",
)  # fmt: skip
"""Settings that change no result of a training that converges, so that a run may go on with others."""


@dataclass
class Past:
    """What a run has behind it as this process takes it up: for a new one nothing."""

    manifest: Manifest
    history: History = field(default_factory=History)

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.history.steps)


def settings_of(resumable: Resumable, experiment: Experiment) -> Experiment:
    """The settings that the run is resumed with, before anything is loaded. RunError where they differ from those that
    it was started with, naming the differences."""
    run, stored = resumable.run, resumable.experiment
    begun_with, own = experiment.adapter.start_from, stored.adapter
    if begun_with is not None and begun_with == own.start_from:
        adapter = continued(experiment.adapter, own, f'run "{run.folder.name}"')
        experiment = experiment.model_copy(update={"adapter": adapter})
    if experiment.data.held_out == "auto":  # nobody asks for other rows; earlier versions held out none by default
        data = experiment.data.model_copy(update={"held_out": stored.data.held_out})
        experiment = experiment.model_copy(update={"data": data})
    if stored.training.epochs or stored.training.steps:  # earlier versions had no defaults of classifiers
        report = resumable.checkpoint.data_report
        by = objective_for(report).score.best_by
        rows = resumable.manifest.data.training_sequences
        experiment = experiment.with_defaults(rows=rows, has_validation=bool(report.validation_rows), by=by)
    begun, asked = (leaves(one.model_dump(mode="json")) for one in (stored, experiment))
    differing = sorted(key for key in begun | asked if key not in ANY and begun.get(key) != asked.get(key))
    if differing:
        listed = some((f"{key} was {begun.get(key)!r} and is now {asked.get(key)!r}" for key in differing), 6)
        raise RunError(
            f'run "{run.folder.name}" was started with other settings: {listed}. Use the earlier settings, or '
            "--restart."
        )
    return experiment


def ranks_before_training(resumable: Resumable) -> RankRecord | None:
    """The ranks that data decided when the run began."""
    metrics = resumable.checkpoint.file(METRICS)
    try:
        given = next((record for record in read_history(metrics).ranks if record.step == 0), None)
        if given is not None and min(given.ranks.values(), default=0) < 0:
            raise RunError(f"{metrics} is damaged: a rank is below 0.")
        return given
    except RunError as error:
        raise RunError(f"{error} Use --restart to start the run again.") from None


def take_up(
    resumable: Resumable, state: TrainState, now: Manifest, data_report: DataReport, callback: Callback
) -> Past:  # fmt: skip
    """Restore `state`; `now` is the manifest that a new run would have. What is refused is left as it is."""
    run, begun = resumable.run, resumable.manifest
    _check_same(run, "the data", begun=resumable.checkpoint.data_report, now=data_report, but=SAID_OF_ROWS)
    _check_same(run, "the base model", begun=begun.base_model, now=now.base_model, but={"name": True, "source": True})
    if begun.anchor is not None and now.anchor is not None:
        what = f"the anchor's text ({begun.anchor.text}; now {now.anchor.text})"
        _check_same(run, what, begun=begun.anchor, now=now.anchor, but={"text": True, "origins": True})
    past, metrics = _restored(resumable, state)
    since = begun.back_offs[len(resumable.checkpoint.manifest.back_offs) :]
    for one in since:
        metrics += line_of(BackOffRecord(state.step, one.begun, one.learning_rate).as_row()).encode()
    files, lines = resumable.restored()
    for line in (*resumable.lines, *lines):
        callback(WarningMessage(line))
    for line in run.go_on(state.step, {METRICS: metrics, **files}):
        callback(WarningMessage(line))
    resumed = (*begun.resumed, Resumed(step=state.step, machine=training_machine()))
    again = {"status": "running", "ended": None, "problem": None, "resumed": resumed}
    past.manifest = begun.model_copy(update=again)
    return past


def take_up_together(
    world: World, resumable: Resumable, state: TrainState, now: Manifest, data_report: DataReport, callback: Callback
) -> Past:  # fmt: skip
    """Take up a run in several processes: the first calls `take_up`, and the others then read the checkpoint that it
    went on from."""
    world.barrier()  # all have read what the first may change now
    past = take_up(resumable, state, now, data_report, callback) if world.is_first else None
    step = world.share(lambda: state.step)
    if past is None:
        restore(state, resumable.run.checkpoints.path(step))
        begun = resumable.manifest
        begun = begun.model_copy(update={"resumed": (*begun.resumed, Resumed(step=step, machine=training_machine()))})
        _, past = _until(step, resumable.run.metrics, begun)
    world.barrier()  # the first one writes over nothing that another still reads
    return past


def _restored(resumable: Resumable, state: TrainState) -> tuple[Past, bytes]:
    """What is behind the checkpoint, and its metrics log, with the state restored. Where the checkpoint or the best
    snapshot that it needs is damaged, those of an older one."""
    while True:
        checkpoint = resumable.checkpoint
        try:
            rows, past = _until(checkpoint.step, checkpoint.file(METRICS), resumable.manifest)
            stored = resumable.experiment
            earliest = stored.objective_settings.earliest
            check_best(resumable.run, state, stored.validation, earliest, validations_in(past.history))
            restore(state, checkpoint.folder)
        except DamagedStep as error:
            if not resumable.older(error):
                raise
            continue
        assert state.step == checkpoint.step, "its folder is named by it"
        return past, first_lines(checkpoint.file(METRICS), len(rows))


def training_machine() -> dict[str, Any]:
    """With the number of torch's threads, by which sums of float32 round otherwise."""
    return machine() | {"threads": torch.get_num_threads()}


def changed_since(manifest: Manifest) -> str | None:
    """A sentence where the last process had other versions or another machine: sums may round otherwise."""
    *earlier, last = ((one.versions, one.machine) for one in (manifest, *manifest.resumed))
    differing = differences(earlier[-1], last)
    return (
        f"the result may differ by rounding from that of an uninterrupted run: {some(differing, 4)}"
        if differing
        else None
    )


def differences(*both: tuple[dict[str, str], dict[str, Any]]) -> list[str]:
    """The differences between versions and machine of then and of now, in a phrase each."""
    then, now = ((versions, {"processes": 1} | machine) for versions, machine in both)
    return [
        f"{key} was {old.get(key)} and is now {new.get(key)}"
        for old, new in zip(then, now, strict=True)
        for key in new
        if old.get(key) != new.get(key) and (key != "threads" or key in old)  # which earlier versions did not record
    ]


def _check_same(run: RunDirectory, what: str, *, begun: Any, now: Any, but: Mapping[str, Any]) -> None:
    old, new = (leaves(one.model_dump(mode="json", exclude=but)) for one in (begun, now))
    differing = [key for key in old | new if old.get(key) != new.get(key)]
    if differing:
        raise RunError(
            f'run "{run.folder.name}" cannot be resumed: {what} changed since it was started ({some(differing, 4)}). '
            "Restore the earlier state, or use --restart."
        )


def _until(step: int, metrics: Path, begun: Manifest) -> tuple[list[dict[str, Any]], Past]:
    """The records up to a step, as rows and as what they tell."""
    try:
        rows = list(takewhile(lambda row: row["step"] <= step, read_metrics_log(metrics)))
        history = history_of(metrics, rows)
    except (OSError, KeyError, TypeError, RunError) as error:
        raise RunError(f"{metrics} is damaged ({error}). Use --restart to start the run again.") from None
    if [record.step for record in history.steps] != list(range(1, step + 1)):
        raise RunError(
            f"{metrics} lacks steps before step {step}, the step of the checkpoint. Use --restart to start the "
            "run again."
        )
    return rows, Past(begun, history)
