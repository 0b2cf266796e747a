"""The objectives by name, each imported when it is asked for; this is the only place that lists them. Which objective a
training has, and what is read of its model and of its rows to make it: classes, tags, places of choices, how images are
prepared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pkgutil import resolve_name

from rankwise.base.inspection import nature_of, pooling_of
from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import processing_in
from rankwise.base.sources import find
from rankwise.config.classification import PreferenceConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment, RowSettings
from rankwise.config.images import ImagesConfig
from rankwise.config.incompatible import problems as problems_of
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import OBJECTIVES
from rankwise.errors import ConfigError, DataError, joined_problems
from rankwise.objectives.objective import Facts, Objective
from rankwise.rows.classes import examples_of, holds_tags, read_tags, read_targets
from rankwise.rows.forms.formats import Choices
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage
from rankwise.runs.row_facts import Pooling, TargetFacts

CLASSES = {
    "multiple-choice": "rankwise.objectives.multiple_choice:multiple_choice",
    "preference": "rankwise.objectives.preference:preference",
    "sequence-to-sequence": "rankwise.objectives.sequence_to_sequence:sequence_to_sequence",
    "image-classification": "rankwise.objectives.image_classification:image_classification",
    "token-classification": "rankwise.objectives.tagging:tagging",
    "sequence-classification": "rankwise.objectives.text_classification:text_classification",
    "causal-lm": "rankwise.objectives.causal_lm:causal_lm",
}
"""By the name that settings have as `objective`: the function that makes one of its facts."""


def objective_named(name: str, facts: Facts | None = None) -> Objective:
    return resolve_name(CLASSES[name])(facts or Facts())


def objective_for(report: DataReport | None) -> Objective:
    """What a run or an adapter was trained for, by the report that lies beside it."""
    if report is None:
        return objective_named("causal-lm")
    facts = Facts(report.targets, report.image_processing)
    if (pairs := report.pairs) is not None:
        facts = Facts(preference=PreferenceConfig(loss=pairs.loss, beta=pairs.beta), prompts=pairs.prompts)
    return objective_named(_name(report), facts)


def _name(report: DataReport) -> str:
    targets = report.targets
    if report.pairs is not None:
        return "preference"
    if report.encoder_decoder or targets is None:
        return "sequence-to-sequence" if report.encoder_decoder else "causal-lm"
    if report.format == "multiple-choice":
        return report.format
    if report.image_processing is not None:
        return "image-classification"
    return "token-classification" if targets.form == "tags" else "sequence-classification"


def language_model(encoder_decoder: bool) -> Objective:
    """What a model that writes texts is trained for on texts and answers."""
    return objective_named("sequence-to-sequence" if encoder_decoder else "causal-lm")


def text_objective(model: LoadedModel) -> Objective:
    return language_model(model.encoder_decoder)


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
    return objective_named(name, FACTS[name](rows, callback, begun) if name in FACTS else None)


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


def _of_pairs(rows: RowSettings, callback: Callback, begun: Pooling | None) -> Facts:
    config = rows.preference
    return Facts(preference=config, prompts=rows.data.learned == "everything" and config.loss == "orpo")


def _of_choices(rows: RowSettings, callback: Callback, begun: Pooling | None) -> Facts:
    return Facts(read_places(rows.data))


def _of_texts(rows: RowSettings, callback: Callback, begun: Pooling | None) -> Facts:
    config = rows.classification
    targets, folder = read_targets(rows.data, config), find(rows.base, callback).folder
    if begun is not None and config.pooling not in ("auto", begun):
        raise ConfigError([
            f"classification.pooling is {config.pooling}, but the head to go on with reads {begun}. Leave the "
            "setting out, or begin a new adapter without --from."
        ])  # fmt: skip
    pooling, note = pooling_of(folder, config)
    if begun is None and note is not None:
        callback(StatusMessage(note))
    return Facts(targets.model_copy(update={"pooling": begun or pooling}), seed=rows.seed)


def _of_tags(rows: RowSettings, callback: Callback, begun: Pooling | None) -> Facts:
    return Facts(read_tags(rows.data, rows.classification), seed=rows.seed)


def _of_images(rows: RowSettings, callback: Callback, begun: Pooling | None) -> Facts:
    targets = read_targets(rows.data, rows.classification)
    processing = processing_in(find(rows.base, callback).folder).sized(rows.images.size)
    return Facts(targets, processing, seed=rows.seed)


FACTS: Mapping[str, Callable[[RowSettings, Callback, Pooling | None], Facts]] = {
    "preference": _of_pairs,
    "multiple-choice": _of_choices,
    "sequence-classification": _of_texts,
    "token-classification": _of_tags,
    "image-classification": _of_images,
}
"""What an objective is made from, where it is made from anything."""


def read_places(config: DataConfig) -> TargetFacts:
    """Where the right choices stand. DataError where no row has one, or what is wrong with the rows."""
    problems, places, most = list[str](), Counter[int](), 0
    for example in examples_of(config, problems):
        if isinstance(example, Choices):
            most = max(most, len(example.choices))
            places.update([] if example.answer is None else [example.answer])
    if problems and (config.on_bad_row == "stop" or not places):
        raise DataError(joined_problems(problems))
    if not places:
        names = ", ".join(source.path for source in config.all_sources)
        raise DataError(f"{names}: no row has a question with choices and an answer.")
    classes = tuple(f"choice {number}" for number in range(most))
    return TargetFacts(classes=classes, counts=tuple(places[number] for number in range(most)))
