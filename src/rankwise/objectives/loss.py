"""What computes an objective: batches of rows, the model's outputs for their targets, and the loss.

    rows -> batches -> predict -> loss

The loss is a sum over `Batch.count` predictions. The mean is taken once, over a whole optimizer step or a whole
validation, so how rows are cut into batches changes no result.

The loss of whole rows, which text and image classifiers share:

classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
several    loss = sum over rows of the mean over classes of -log sigmoid(logit), or -log sigmoid(-logit) of a class
                  that the row does not have
numbers    loss = sum over rows of (output - target)^2
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.loaded import LoadedModel
from rankwise.rows.encoded.batches import Batch, portions_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts


def outputs_in(logits: Tensor, targets: TargetFacts) -> Tensor:
    """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact if targets.classes else exact[:, 0]


def weight_of(values: Tensor, targets: TargetFacts) -> float:
    """The sum of the weights of rows with these targets."""
    return float(torch.tensor(targets.weights)[values].sum()) if targets.weights else len(values)


def values_of(rows: Sequence[Tokens], targets: TargetFacts) -> Tensor:
    """(B,) classes or numbers, or (B, C) where a row has several classes. Rows that are only read have zeros."""
    nothing = [0.0] * targets.outputs if targets.form == "several" else 0.0
    values = torch.tensor([nothing if row.target is None else row.target for row in rows], dtype=torch.float64)
    return values.long() if targets.classes and targets.form == "one" else values.float()


def target_loss(outputs: Tensor, values: Tensor, targets: TargetFacts) -> Tensor:
    """`values` are what the outputs should be: (B,) classes or numbers, or (B, C) where a row has several classes."""
    if targets.form == "several":
        return F.binary_cross_entropy_with_logits(outputs, values, reduction="sum") / targets.outputs
    if not targets.classes:
        return F.mse_loss(outputs, values, reduction="sum")
    weights = torch.tensor(targets.weights).to(outputs) if targets.weights else None
    return F.cross_entropy(outputs, values, weights, reduction="sum")


class Loss(ABC):
    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model before training."""
        return False

    @abstractmethod
    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Padded batches of at most so many tokens; a longer row is alone in its batch."""
        ...

    @abstractmethod
    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits or values, one row for each target of the batch that is not ignored."""
        ...

    @abstractmethod
    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of `batch.count` predictions."""
        ...

    @abstractmethod
    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """Rows that the model accepts, for measuring memory and time."""
        ...

    def sample_logits(self, model: LoadedModel, text: str) -> Tensor:
        """The logits of a text, by which two copies of a model are compared."""
        ids = torch.tensor([model.tokenizer.encode(text)], device=model.precision.device)
        return model.module(input_ids=ids).logits


@dataclass(frozen=True)
class ClassLoss(Loss):
    """Predicts one class or one number for a whole row, or a class for each of its words."""

    targets: TargetFacts

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self.batch_of(part) for part in portions_of(rows, max_tokens, width=lambda row: len(row.ids))]

    @abstractmethod
    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        """All of them, in their order."""
        ...

    def learned(self, values: Tensor, mask: Tensor) -> Tensor:
        """The values that the loss falls on, here all of them. `mask` is True where a value is a target."""
        return values

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        targets = self.learned(batch.targets, batch.loss_mask)
        return target_loss(self.predict(module, batch), targets, self.targets)
