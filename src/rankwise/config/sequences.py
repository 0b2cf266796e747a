"""Settings that have no effect where an encoder reads a row's input and a decoder writes its output."""

from __future__ import annotations

from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig


def not_of_sequences(model: ModelConfig, data: DataConfig | None, training: TrainingConfig) -> list[str]:
    """The settings given here that are for causal language models alone. Only a plan has no `data`."""
    names = ["model.new_tokens"] if model.new_tokens else []
    names += [f"data.{name}" for name in data.of_language_models] if data is not None else []
    return names + ["training.learning_rate tune"] * (training.learning_rate == "tune")
