"""What a model cannot be measured with, refused by name before anything is measured."""

from __future__ import annotations

from rankwise.config.tasks import TaskConfig
from rankwise.errors import ConfigError
from rankwise.evaluation.subject import Subject
from rankwise.runs.records import Callback, StatusMessage


def refuse_of_language_models(
    subject: Subject, task: str | TaskConfig | None, text: str | None, blocks: int | None
) -> None:
    """ConfigError where a classifier is given what only a language model can be measured with."""
    given = [name for name, value in (("--task", task), ("--text", text), ("--blocks", blocks)) if value is not None]
    if subject.classifier is not None and given:
        raise ConfigError(
            [f"{given[0]} is for language models, and {subject.name} is a classifier. Give labelled rows with --data."]
        )


def refuse_running_text(
    subject: Subject, text: str | None, blocks: int | None, callback: Callback, *, measures: bool
) -> None:
    """What was forgotten is measured on running text, which an encoder with a decoder does not continue."""
    if not subject.model.encoder_decoder or subject.classifier is not None:
        return
    given = [name for name, value in (("--text", text), ("--blocks", blocks)) if value is not None]
    if given:
        raise ConfigError([f"{given[0]} is for running text, and {subject.name} is an encoder with a decoder, which "
                           "does not continue one. Leave it out."])  # fmt: skip
    if measures:
        callback(StatusMessage(
            "what this model has forgotten is not measured: rankwise measures it on running text, which an encoder "
            "with a decoder does not continue"
        ))  # fmt: skip
