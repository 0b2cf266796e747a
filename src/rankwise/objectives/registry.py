"""The objective of a training, and of what was trained. This is the only place that lists them."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from rankwise.base.inspection import is_encoder_decoder, nature_of
from rankwise.base.sources import find
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment, RowSettings
from rankwise.config.images import ImagesConfig
from rankwise.config.incompatible import problems as problems_of
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import OBJECTIVES
from rankwise.errors import ConfigError
from rankwise.objectives.objective import Objective
from rankwise.rows.classes import holds_tags
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage
from rankwise.runs.row_facts import Pooling

CLASSES = {
    "multiple-choice": "rankwise.objectives.multiple_choice:MultipleChoice",
    "preference": "rankwise.objectives.preference:Preference",
    "sequence-to-sequence": "rankwise.objectives.sequence_to_sequence:SequenceToSequence",
    "image-classification": "rankwise.objectives.image_classification:ImageClassification",
    "token-classification": "rankwise.objectives.tagging:Tagging",
    "sequence-classification": "rankwise.objectives.text_classification:TextClassification",
    "causal-lm": "rankwise.objectives.causal_lm:CausalLM",
}
"""By the name that settings have as `objective`; imported when it is used."""


def objective_named(name: str) -> type[Objective]:
    return resolve_name(CLASSES[name])


def decided(experiment: Experiment, callback: Callback) -> Experiment:
    """The experiment with `auto` decided by the model, which is said. ConfigError where the model cannot do what the
    objective needs, or a setting has no effect with it."""
    config = find(experiment.base, callback).config
    nature, given = nature_of(config), experiment.objective_settings
    model = experiment.model.name, config.get("model_type") or config.get("architecture")
    own = given.decided(nature, lambda: holds_tags(experiment.data))
    if own is not given and own.because:
        callback(StatusMessage(f"the objective is {own.name}: {own.because.format(*model)} (--objective)"))
    experiment = experiment.model_copy(update={"objective": own.name})
    if problem := own.problem(nature, "{} ({})".format(*model)):
        raise ConfigError([problem])
    if problems := problems_of(experiment, "objective"):
        raise ConfigError(problems)
    return experiment.model_copy(update={"data": own.rows(experiment.data)})


def objective_of(name: str, rows: RowSettings, callback: Callback, begun: Pooling | None = None) -> Objective:
    """For a training whose objective is decided. The classes of a classifier are read from the training rows. `begun`
    is what the head of the run that goes on reads, or of the adapter to begin with."""
    return objective_named(name).of(rows, callback, begun)


def objective_by(
    model: ModelConfig, data: DataConfig, images: ImagesConfig, callback: Callback, name: str = "auto"
) -> Objective:
    """For rows that are looked at before there is an experiment. ConfigError where the model cannot do what the
    objective of that name needs."""
    nature, own = nature_of(find(model, callback).config), OBJECTIVES[name]
    if problem := own.problem(nature, model.name):
        raise ConfigError([problem])
    by_format = next((one.format for one in data.all_sources if one.format in CLASSES), None)
    name = by_format or own.decided(nature, lambda: holds_tags(data)).name
    return objective_of(name, RowSettings(data, model, images=images), callback, "own")


def language_model(config: dict[str, Any]) -> Objective:
    """The objective of a model that writes texts, by its config.json."""
    return objective_named("sequence-to-sequence" if is_encoder_decoder(config) else "causal-lm")()


def objective_for(data_report: DataReport | None) -> Objective:
    """What a run or an adapter was trained for, by the report that lies beside it."""
    if data_report is None:
        return objective_named("causal-lm")()
    return objective_named(_name(data_report)).of_report(data_report)


def _name(data_report: DataReport) -> str:
    targets = data_report.targets
    if data_report.pairs is not None:
        return "preference"
    if data_report.encoder_decoder or targets is None:
        return "sequence-to-sequence" if data_report.encoder_decoder else "causal-lm"
    if data_report.format == "multiple-choice":
        return data_report.format
    if data_report.image_processing is not None:
        return "image-classification"
    return "token-classification" if targets.form == "tags" else "sequence-classification"
