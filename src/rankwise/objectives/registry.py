"""The objective of a training, and of what was trained. This is the only place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankwise.base.inspection import is_encoder_decoder, nature_of
from rankwise.base.sources import find
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment, Planned
from rankwise.config.images import ImagesConfig
from rankwise.config.incompatible import problems as problems_of
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import OBJECTIVES
from rankwise.errors import ConfigError
from rankwise.objectives.causal_lm import CAUSAL_LM, CausalLM
from rankwise.objectives.image_classification import ImageClassification
from rankwise.objectives.multiple_choice import MultipleChoice
from rankwise.objectives.objective import Objective
from rankwise.objectives.preference import Preference
from rankwise.objectives.sequence_to_sequence import SEQUENCE_TO_SEQUENCE, SequenceToSequence
from rankwise.objectives.tagging import Tagging
from rankwise.objectives.text_classification import TextClassification
from rankwise.rows.classes import holds_tags
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage
from rankwise.runs.row_facts import Pooling

CLASSES: Mapping[str, type[Objective]] = {
    one.name: one
    for one in (
        MultipleChoice,
        Preference,
        SequenceToSequence,
        ImageClassification,
        Tagging,
        TextClassification,
        CausalLM,
    )
}
"""A report belongs to the first that knows it."""


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


def objective_of(experiment: Experiment, callback: Callback, begun: Pooling | None = None) -> Objective:
    """For a training whose objective is decided. The classes of a classifier are read from the training rows. `begun`
    is what the head of the run that goes on reads, or of the adapter to begin with."""
    return CLASSES[experiment.objective].of(experiment, callback, begun)


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
    return CLASSES[name].of(Planned(model=model, data=data, images=images), callback, "own")


def language_model(config: dict[str, Any]) -> CausalLM | SequenceToSequence:
    """The objective of a model that writes texts, by its config.json."""
    return SEQUENCE_TO_SEQUENCE if is_encoder_decoder(config) else CAUSAL_LM


def objective_for(data_report: DataReport | None) -> Objective:
    """What a run or an adapter was trained for, by the report that lies beside it."""
    reported = (one.of_report(data_report) for one in CLASSES.values()) if data_report is not None else ()
    return next((one for one in reported if one is not None), CAUSAL_LM)
