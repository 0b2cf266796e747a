"""What a training with a base that is split over its processes (model.sharded) does not do yet, refused by name before
anything is computed; and how its processes are connected for it."""

from __future__ import annotations

from rankwise.config.experiment import Experiment
from rankwise.config.validation import ValidationConfig
from rankwise.errors import ConfigError
from rankwise.models.precision import choose_precision
from rankwise.models.sharding import ALONE, mesh_of
from rankwise.runs.records import Callback, StatusMessage
from rankwise.training.world import World

NO_SAMPLES = "no sample answers are written, since the base is split over several processes (model.sharded)"


def connect_shards(experiment: Experiment, world: World) -> None:
    """ConfigError with all settings that do not go with a sharded base. Else all processes connect for it."""
    if not experiment.model.sharded:
        return
    if not world.is_several:
        raise ConfigError([ALONE])
    if problems := _problems(experiment):
        raise ConfigError(problems)
    mesh_of(choose_precision(experiment.base).device.type)


def _problems(experiment: Experiment) -> list[str]:
    training, adapter, validation = experiment.training, experiment.adapter, experiment.validation
    backend = training.backend
    refused = {
        "adapter.dora": adapter.needs_rows_of_weights,
        "adapter.start=eva": getattr(adapter, "start", None) == "eva",
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
    return [f"model.sharded (--shard) cannot be used with {name} {advice}" for name, used in refused.items() if used]


def refuse_other_objectives(experiment: Experiment, objective: str) -> None:
    if experiment.model.sharded and objective != "causal-lm":
        raise ConfigError([
            f"model.sharded (--shard) cannot be used with the objective {objective} yet. Train without --shard."
        ])  # fmt: skip


def measured_as(experiment: Experiment, callback: Callback) -> ValidationConfig:
    """How a run is measured: without samples of answers, which the first process would write alone."""
    validation = experiment.validation
    if not experiment.model.sharded or validation.prompts == ():
        return validation
    if experiment.data.held_out or experiment.data.validation is not None:
        callback(StatusMessage(NO_SAMPLES))
    return validation.model_copy(update={"prompts": ()})
