"""Settings that have no effect with the objective of an experiment, or that the objective does not support yet."""

from __future__ import annotations

from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.images import ImagesConfig
from rankwise.config.models import ModelConfig
from rankwise.config.preference import PreferenceConfig, not_of_pairs
from rankwise.config.training import TrainingConfig


def misfits(experiment: Experiment) -> list[str]:
    """One sentence for each such setting; none while the objective is `auto`."""
    if experiment.objective == "auto":
        return []
    idle = [f"validation.{name}" for name in experiment.validation.of_other_objective(experiment.objective)]
    idle += filter(None, [experiment.adapter.misfit(experiment.objective)])
    idle += _of_training(experiment) + _of_data(experiment)
    if experiment.objective == "sequence-to-sequence":
        idle += not_of_sequences(experiment.model, experiment.data, experiment.training)
    if not experiment.classifies and experiment.classification != ClassificationConfig():
        idle.append("classification")
    if experiment.objective != "image-classification" and experiment.images != ImagesConfig():
        idle.append("images")
    if experiment.objective != "preference" and experiment.preference != PreferenceConfig():
        idle.append("preference")
    return [
        f"the setting {name} has no effect with the objective {experiment.objective}. Leave it out, or choose another "
        "objective (--objective)." for name in idle
    ]  # fmt: skip


def _of_training(experiment: Experiment) -> list[str]:
    training, pairs = experiment.training, experiment.objective == "preference"
    others = experiment.objective != "causal-lm"
    idle = [f"training.{name}" for name in ("anchor", "replay") if others and getattr(training, name) is not None]
    return idle + ["training.learning_rate tune"] * (pairs and training.learning_rate == "tune")


def _of_data(experiment: Experiment) -> list[str]:
    data = experiment.data
    if data is None:  # only a plan has no rows
        return []
    names = []
    if experiment.classifies:
        names += data.of_language_models
    if experiment.objective == "image-classification":
        names += data.of_texts
    if experiment.objective == "preference":
        names += not_of_pairs(data)
        names += ["learned everything"] * (data.learned == "everything" and experiment.preference.loss == "dpo")
    return [f"data.{name}" for name in names]


def not_of_sequences(model: ModelConfig, data: DataConfig | None, training: TrainingConfig) -> list[str]:
    """The settings given here that are for causal language models alone. Only a plan has no `data`."""
    names = ["model.new_tokens"] if model.new_tokens else []
    names += [f"data.{name}" for name in data.of_language_models] if data is not None else []
    return names + ["training.learning_rate tune"] * (training.learning_rate == "tune")
