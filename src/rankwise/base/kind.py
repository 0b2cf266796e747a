"""The kinds of model that transformers builds from a folder: for text, for text from text, and for classes of texts and
of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.config.images import ImageProcessing
from rankwise.runs.records import Callback


@dataclass(frozen=True)
class ModelKind:
    """The kind of model that transformers builds from a folder."""

    auto_class: str
    described: str
    head_seed: int | None = None
    """For a model with a new head: draws the weights that the folder lacks. None where the folder must have all."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings that override the folder's config.json."""
    processing: ImageProcessing | None = None
    """For a model that reads images: how they become what it reads. None for a model of texts."""
    finish: Callable[[LoadedModel, Callback], LoadedModel] | None = field(default=None, compare=False)
    """Checks and completes the loaded model, where its objective needs more of it."""


CAUSAL_LM = ModelKind("AutoModelForCausalLM", "a causal language model")
ENCODER_DECODER = ModelKind("AutoModelForSeq2SeqLM", "an encoder and a decoder of texts")


def kind_for(kind: ModelKind, config: Mapping[str, Any]) -> ModelKind:
    """The kind for a folder with this config: a language model that reads images too has an auto class of its own in
    many families. Its text is trained on alone."""
    from transformers.models.auto import modeling_auto as auto

    family = config.get("model_type")
    if kind != CAUSAL_LM or not isinstance(family, str) or family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return kind
    if family not in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return kind
    return replace(kind, auto_class="AutoModelForImageTextToText")
