"""The objective of a training, and of what was trained. This is the only place that lists them."""

from __future__ import annotations

from typing import Any

from rankwise.base.inspection import is_encoder, is_encoder_decoder, reads_images
from rankwise.base.preprocessing import processing_in
from rankwise.base.sources import find
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.images import ImagesConfig
from rankwise.config.misfits import misfits
from rankwise.config.models import ModelConfig
from rankwise.config.preference import PreferenceConfig, read_as
from rankwise.errors import ConfigError
from rankwise.objectives import image_classification, preference, tagging, text_classification
from rankwise.objectives.causal_lm import CAUSAL_LM, CausalLM
from rankwise.objectives.image_classification import ImageClassification
from rankwise.objectives.objective import Objective
from rankwise.objectives.preference import Preference
from rankwise.objectives.sequence_to_sequence import SEQUENCE_TO_SEQUENCE, SequenceToSequence
from rankwise.objectives.tagging import Tagging
from rankwise.objectives.text_classification import TextClassification
from rankwise.planning.pooling import pooling_of
from rankwise.planning.shape import ModelShape
from rankwise.rows.classes import read_targets
from rankwise.rows.tag_classes import holds_tags, read_tags
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage
from rankwise.runs.row_facts import Pooling, TargetFacts

OF_IMAGES, OF_PAIRS = image_classification.NAME, preference.NAME
OF_TEXTS, OF_WORDS = text_classification.NAME, tagging.NAME


def decided(experiment: Experiment, callback: Callback) -> Experiment:
    """The experiment with `auto` decided by the model, which is said. ConfigError where the model cannot do what the
    objective needs, or a setting has no effect with it."""
    config = find(experiment.base, callback).config
    name, kind = experiment.model.name, config.get("model_type") or config.get("architecture")
    if experiment.objective == "auto":
        chosen = CAUSAL_LM.name
        if reads_images(config):
            chosen = OF_IMAGES
            callback(StatusMessage(f"the objective is {OF_IMAGES}: {name} is a vision model ({kind}) (--objective)"))
        elif holds_tags(experiment.data):
            chosen = OF_WORDS
            callback(StatusMessage(f"the objective is {OF_WORDS}: the words of the rows have tags (--objective)"))
        elif is_encoder(config):
            chosen = OF_TEXTS
            callback(StatusMessage(
                f"the objective is {OF_TEXTS}: {name} is an encoder ({kind}), which generates no text (--objective)"
            ))  # fmt: skip
        elif is_encoder_decoder(config):
            chosen = SEQUENCE_TO_SEQUENCE.name
            callback(StatusMessage(
                f"the objective is {chosen}: {name} is an encoder with a decoder ({kind}) (--objective)"
            ))  # fmt: skip
        experiment = experiment.model_copy(update={"objective": chosen})
    if problem := _misfit(experiment.objective, config, f"{name} ({kind})"):
        raise ConfigError([problem])
    if problems := misfits(experiment):
        raise ConfigError(problems)
    return experiment.model_copy(update={"data": read_as(experiment.data, experiment.objective)})


def _misfit(objective: str, config: dict[str, Any], model: str) -> str | None:
    """Why a model does not suit an objective."""
    if reads_images(config) != (objective == OF_IMAGES):
        reads = "images" if reads_images(config) else "texts"
        return (
            f"the objective is {objective}, but {model} is a model of {reads}. Choose another model with --model, or "
            "leave out --objective."
        )
    if objective == SEQUENCE_TO_SEQUENCE.name and not is_encoder_decoder(config):
        return (
            f"the objective is {objective}, but {model} is not an encoder with a decoder, as T5 and BART are. Choose "
            "another model with --model, or leave out --objective."
        )
    if objective == CAUSAL_LM.name and is_encoder_decoder(config):
        return (
            f"the objective is {objective}, but {model} is an encoder with a decoder, which is trained with the "
            f"objective {SEQUENCE_TO_SEQUENCE.name}. Leave out --objective."
        )
    if objective == OF_PAIRS and is_encoder(config):
        return f"the objective is {OF_PAIRS}, but {model} generates no text. Choose a language model with --model."
    if objective in (OF_PAIRS, OF_WORDS) and is_encoder_decoder(config):
        return (
            f"the objective is {objective}, but {model} is an encoder with a decoder, which rankwise trains with the "
            f"objective {SEQUENCE_TO_SEQUENCE.name} alone. Choose another model with --model."
        )
    return None


def objective_of(experiment: Experiment, callback: Callback, begun: Pooling | None = None) -> Objective:
    """For a training whose objective is decided. The classes of a classifier are read from the training rows. `begun`
    is what the head of the run that goes on reads, or of the adapter to begin with."""
    if experiment.objective == CAUSAL_LM.name:
        return CAUSAL_LM
    if experiment.objective == SEQUENCE_TO_SEQUENCE.name:
        return SEQUENCE_TO_SEQUENCE
    if experiment.objective == OF_PAIRS:
        return Preference(experiment.preference, prompts=experiment.data.learned == "everything")
    seed = experiment.training.seed
    if experiment.objective == OF_WORDS:
        return Tagging(read_tags(experiment.data, experiment.classification), seed)
    targets = read_targets(experiment.data, experiment.classification)
    if experiment.objective == OF_TEXTS:
        return TextClassification(targets.model_copy(update={"pooling": _pooling(experiment, callback, begun)}), seed)
    processing = processing_in(find(experiment.base, callback).folder).sized(experiment.images.size)
    return ImageClassification(targets, processing, seed)


def _pooling(experiment: Experiment, callback: Callback, begun: Pooling | None) -> Pooling:
    asked = experiment.classification.pooling
    if begun is not None and asked not in ("auto", begun):
        raise ConfigError([
            f"classification.pooling is {asked}, but the head to go on with reads {begun}. Leave the setting out, or "
            "begin a new adapter without --from."
        ])  # fmt: skip
    pooling, note = pooling_of(find(experiment.base, callback).folder, experiment.classification)
    if begun is None and note is not None:
        callback(StatusMessage(note))
    return begun or pooling


def objective_by(
    model: ModelConfig | None, data: DataConfig, images: ImagesConfig, callback: Callback, name: str = "auto"
) -> CausalLM | SequenceToSequence | Preference | TextClassification | ImageClassification:
    """For rows that are looked at before there is an experiment. ConfigError where the model cannot do what the
    objective of that name needs."""
    source = None if model is None else find(model, callback)
    config: dict[str, Any] = {} if source is None else source.config
    if model is not None and name != "auto" and (problem := _misfit(name, config, model.name)):
        raise ConfigError([problem])
    if any(source.format == OF_PAIRS for source in data.all_sources):
        return Preference(PreferenceConfig())
    if source is not None and reads_images(config):
        targets = read_targets(data, ClassificationConfig())
        return ImageClassification(targets, processing_in(source.folder).sized(images.size))
    if name == OF_WORDS or (name == "auto" and holds_tags(data)):
        return Tagging(read_tags(data, ClassificationConfig()))
    if name == OF_TEXTS or (name == "auto" and is_encoder(config)):
        return TextClassification(read_targets(data, ClassificationConfig()))
    return language_model(config)


def objective_of_shape(shape: ModelShape, base: ModelConfig, callback: Callback) -> Objective:
    """Of a plan, where nothing is written, so classes have no names."""
    if shape.outputs is None:
        return SEQUENCE_TO_SEQUENCE if shape.is_encoder_decoder else CAUSAL_LM
    targets = TargetFacts(classes=tuple(map(str, range(shape.outputs))) if shape.outputs > 1 else ())
    if shape.image is not None:
        return ImageClassification(targets, processing_in(find(base, callback).folder).sized(shape.image))
    return Tagging(targets.model_copy(update={"form": "tags"})) if shape.words else TextClassification(targets)


def language_model(config: dict[str, Any]) -> CausalLM | SequenceToSequence:
    """The objective of a model that writes texts, by its config.json."""
    return SEQUENCE_TO_SEQUENCE if is_encoder_decoder(config) else CAUSAL_LM


def objective_for(data_report: DataReport | None) -> Objective:
    """What a run or an adapter was trained for, by the report that lies beside it."""
    targets = None if data_report is None else data_report.targets
    if data_report is not None and data_report.pairs is not None:
        return Preference.of(data_report.pairs)
    if data_report is not None and data_report.encoder_decoder:
        return SEQUENCE_TO_SEQUENCE
    if data_report is None or targets is None:
        return CAUSAL_LM
    if data_report.image_processing is not None:
        return ImageClassification(targets, data_report.image_processing)
    return Tagging(targets) if targets.form == "tags" else TextClassification(targets)
