"""The kinds of model that transformers builds from a folder: for text, for text from text, and for classes of texts and
of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rankwise.config.images import ImageProcessing
from rankwise.errors import ModelError, first_line


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


CAUSAL_LM = ModelKind("AutoModelForCausalLM", "a causal language model")
ENCODER_DECODER = ModelKind("AutoModelForSeq2SeqLM", "an encoder and a decoder of texts")


def hub_config(folder: Path, *, trusted: bool = False) -> Any:
    """The settings of a model's folder as transformers reads them, with its defaults for those that are left out."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # as many kinds as there are architectures
        raise ModelError(f"{folder} contains no model that can be loaded: {first_line(error)}") from None


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
