"""An objective says what a row of data means to a model and what its loss is.

    rows -> encode -> batches -> predict -> loss

The loss is a sum over `Batch.count` predictions. The mean is taken once, over a whole optimizer step or a whole
validation, so how rows are cut into batches changes no result. Training, validation and the data pipeline know this
protocol and no task. Objectives know models and data; they know neither adapters nor the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.data.batches import Batch
from rankwise.models.loaded import LoadedModel
from rankwise.runs.data_report import TargetFacts
from rankwise.runs.records import Callback
from rankwise.text.encode import RowEncoder
from rankwise.text.rendering import Template
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer


class Objective(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> TargetFacts | None:
        """The classes or numbers that are predicted for whole rows; None where tokens are predicted."""
        ...

    def load(self, spec: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        """The model by its auto class, and the tokenizer. `checked`: a model that lies in a run must be what training
        wrote there."""
        ...

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Modules that are trained whole beside an adapter (PEFT's modules_to_save)."""
        ...

    def encoder(self, template: Template, tokenizer: HubTokenizer, spec: DataConfig, limit: int) -> RowEncoder: ...

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
