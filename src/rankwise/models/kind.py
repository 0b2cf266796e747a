"""The kinds of model that transformers builds from a folder: for text, for classes of texts and of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankwise.config.images import ImageProcessing


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
