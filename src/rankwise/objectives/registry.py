"""The objective of a training, and of what was trained. This is the only place that lists them."""

from __future__ import annotations

from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment, misfits
from rankwise.config.models import ModelConfig
from rankwise.data.classes import read_targets
from rankwise.errors import ConfigError
from rankwise.models.inspection import is_encoder, read_json
from rankwise.models.sources import find
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.objectives.objective import Objective
from rankwise.objectives.sequence_classification import NAME, SequenceClassification
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage


def decided(experiment: Experiment, callback: Callback) -> Experiment:
    """The experiment with `auto` decided by the model, which is said. ConfigError where a setting has no effect with
    the objective."""
    if experiment.objective == "auto":
        config = read_json(find(experiment.base, callback).folder / "config.json")
        name = NAME if is_encoder(config) else CAUSAL_LM.name
        if name == NAME:
            callback(StatusMessage(
                f"the objective is {NAME}: {experiment.model.name} is an encoder ({config['model_type']}), which "
                "generates no text (--objective)"
            ))  # fmt: skip
        experiment = experiment.model_copy(update={"objective": name})
    if problems := misfits(experiment):
        raise ConfigError(problems)
    return experiment


def objective_of(experiment: Experiment) -> Objective:
    """For a training whose objective is decided. The classes of a classifier are read from the training rows."""
    if experiment.objective != NAME:
        return CAUSAL_LM
    return SequenceClassification(read_targets(experiment.data, experiment.classification), experiment.training.seed)


def objective_by(model: ModelConfig | None, data: DataConfig, callback: Callback) -> Objective:
    """For rows that are looked at before there is an experiment."""
    if model is None or not is_encoder(read_json(find(model, callback).folder / "config.json")):
        return CAUSAL_LM
    return SequenceClassification(read_targets(data, ClassificationConfig()))


def objective_for(data_report: DataReport | None) -> Objective:
    """What a run or an adapter was trained for, by the report that lies beside it."""
    targets = None if data_report is None else data_report.targets
    return CAUSAL_LM if targets is None else SequenceClassification(targets)
