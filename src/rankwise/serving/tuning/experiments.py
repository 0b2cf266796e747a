"""From a job to the experiment that trains it: the settings of OpenAI's API in those of this package.

n_epochs                    training.epochs            auto: 2
batch_size                  training.batch_size        auto: 16, at most the rows
learning_rate_multiplier    training.learning_rate     auto: 1, times the rate that suits model and method
beta                        preference.beta            auto: 0.1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankwise.config.data import ValidationDataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.preference import PreferenceConfig
from rankwise.config.training import TrainingConfig
from rankwise.serving.tuning.bodies import Hyperparameters, PairHyperparameters
from rankwise.serving.tuning.files import Files, StoredFile
from rankwise.serving.tuning.rows import data_of

EPOCHS = 2


@dataclass(frozen=True)
class Base:
    """What a job trains: the model as it is named, its hidden size, and the run whose adapter it begins with."""

    spec: ModelConfig
    width: int
    start_from: str | None = None


def resolved(given: Hyperparameters, rows: int) -> Hyperparameters:
    """With a number for each `auto`."""
    batch = min(TrainingConfig().batch_size, max(rows, 1))
    auto: dict[str, Any] = {"n_epochs": EPOCHS, "batch_size": batch, "learning_rate_multiplier": 1.0}
    if isinstance(given, PairHyperparameters):
        auto["beta"] = PreferenceConfig().beta
    values = given.model_dump()
    return type(given)(**{name: auto[name] if value == "auto" else value for name, value in values.items()})


def experiment_of(
    base: Base, files: Files, training: StoredFile, validation: StoredFile | None, *, run: str, dpo: bool, seed: int,
    hyperparameters: Hyperparameters,
) -> Experiment:  # fmt: skip
    """ConfigError where its numbers, which are resolved, are refused."""
    own: dict[str, Any] = hyperparameters.model_dump()
    data = data_of(files.training(training), training.content)
    if validation is not None:
        apart = ValidationDataConfig(
            path=str(files.training(validation)), format=data.format, ignore_columns=validation.content.ignored
        )
        data = data.model_copy(update={"validation": apart})
    model = base.spec.model_copy(update={"dtype": "auto", "device": "auto"})
    settings: dict[str, Any] = {
        "model": model, "data": data, "run": run, "objective": "preference" if dpo else "causal-lm",
        "adapter": {"method": "lora", "start_from": base.start_from},
        "training": {"epochs": own["n_epochs"], "batch_size": own["batch_size"], "seed": seed},
    }  # fmt: skip
    if dpo:
        settings["preference"] = {"beta": own["beta"]}
    experiment = Experiment(**settings)
    rate = own["learning_rate_multiplier"] * experiment.training.highest_rate(base.width, experiment.auto_rate)
    return Experiment(**settings | {"training": settings["training"] | {"learning_rate": rate}})
