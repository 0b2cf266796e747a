"""An objective says what a row of data means to a model and what its loss is.

    rows -> encode -> batches -> predict -> loss

The loss is a sum over `Batch.count` predictions. The mean is taken once, over a whole optimizer step or a whole
validation, so how rows are cut into batches changes no result. Training, validation and the data pipeline know this
protocol and no task. Objectives know models and data; they know neither adapters nor the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from rankwise.config.models import ModelConfig
from rankwise.data.batches import Batch
from rankwise.data.preparing import Writing
from rankwise.models.kind import ModelKind
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import TargetFacts
from rankwise.text.tokenize import Tokens


class Objective(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> TargetFacts | None:
        """The classes or numbers that are predicted for whole rows; None where tokens are predicted."""
        ...

    @property
    def kind(self) -> ModelKind:
        """What transformers builds from the model's folder."""
        ...

    @property
    def row_length(self) -> int | None:
        """Tokens of every row, where all have the same number, as images have patches."""
        ...

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        """The model by its auto class, and the tokenizer. `checked`: a model that lies in a run must be what training
        wrote there."""
        ...

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Modules that are trained whole beside an adapter (PEFT's modules_to_save)."""
        ...

    def writing(self, model: LoadedModel) -> Writing:
        """How rows are encoded for this model."""
        ...

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Padded batches of at most so many tokens; a longer row is alone in its batch."""
        ...

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits or values, one row for each target of the batch that is not ignored."""
        ...

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of `batch.count` predictions."""
        ...

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Rows that the model accepts, for measuring memory and time."""
        ...


class Classifier(Objective, Protocol):
    """An objective that predicts one class or one number for a whole row."""

    @property
    def targets(self) -> TargetFacts: ...


def classifier(objective: Objective | None) -> Classifier | None:
    """The objective itself where it predicts whole rows, and None where it predicts tokens."""
    return cast("Classifier", objective) if objective is not None and objective.targets is not None else None
