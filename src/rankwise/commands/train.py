"""`train`: settle what a training does, run it, and begin again where it diverges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.base.precision import choose_precision
from rankwise.base.sharding import NEEDS_PROCESSES, mesh_of
from rankwise.commands.report import write_page
from rankwise.config.experiment import Experiment
from rankwise.config.incompatible import problems as problems_of
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError
from rankwise.methods.loading import result_of
from rankwise.methods.trainable import Trainable
from rankwise.objectives.registry import decided
from rankwise.planning.processes import refuse_several
from rankwise.runs.directory import FollowedRun, RunDirectory
from rankwise.runs.manifest import BackOff, Manifest
from rankwise.runs.records import Callback, WarningCollector, silent
from rankwise.runs.resumable import Resumable
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.extras import check_installed
from rankwise.system.launched import launched
from rankwise.system.memory import limited_memory
from rankwise.system.signals import ignore_requests
from rankwise.training.hooks import back_off_together, warning_of
from rankwise.training.run import run
from rankwise.training.settling import settle
from rankwise.training.state import Diverged
from rankwise.training.training import Session, Training
from rankwise.training.world import World, join


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
    if experiment.tracking.log_to:
        check_installed(experiment.tracking.log_to)
    if launched() is not None:
        refuse_several(experiment.model)
    world = join()
    connect_shards(experiment.base, problems_of(experiment, "model.sharded"), world)
    directory = (RunDirectory if world.is_first else FollowedRun).named(experiment.run)
    callback = WarningCollector(callback if world.is_first else silent)
    world.wait_for_turn()
    experiment = decided(experiment, callback)
    back_offs: tuple[BackOff, ...] = ()
    with directory.claimed(restart=restart, resume=resume) as claimed, limited_memory(experiment.model.memory_bytes):
        session = Session(claimed, callback, world)
        while True:
            resumable = Resumable(claimed) if resume else None
            try:
                settled = settle(experiment, resumable, model, callback, force_memory=force_memory)
                training, manifest = run(
                    settled, session, model, back_offs, force_memory=force_memory, force_base=force_base
                )  # fmt: skip
                break
            except Diverged as error:
                back_offs = back_off_together(world, claimed, experiment.training, error)
                if not back_offs:
                    if world.is_several:
                        ignore_requests()
                    raise
            callback(warning_of(back_offs[-1]))
            resume = back_offs[-1].to > 0
            world.wait_for_turn()
        return _finished(training, manifest)


def _finished(training: Training, manifest: Manifest) -> Trained:
    session, objective = training.session, training.objective
    if session.world.is_first:
        write_page(RunSnapshot.of(session.run), session.callback)
    tuned = result_of(training.adapter).after_training(training.model, training.result)
    folder = RunDirectory(session.run.folder)
    return Trained(folder, manifest, training.result, tuned, training.trainable, objective.words.use)


def connect_shards(base: ModelConfig, problems: list[str], world: World) -> None:
    """All processes connect for a sharded base. ConfigError with the settings that do not go with it."""
    if not base.sharded:
        return
    if problems or not world.is_several:
        raise ConfigError(problems if world.is_several else [NEEDS_PROCESSES])
    mesh_of(choose_precision(base).device.type)
