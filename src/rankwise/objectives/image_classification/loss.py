"""Batches of images, and the loss of what a head says of them. Pixels reach the device as whole numbers and are
normalised there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import size_arguments
from rankwise.config.images import ImageProcessing
from rankwise.objectives.loss import ClassLoss, outputs_in, values_of, weight_of
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.images.processor import normalised
from rankwise.rows.text.tokenize import Tokens

SAMPLES = 2
"""Images by which two copies of a model are compared."""


@dataclass(frozen=True)
class ImageLoss(ClassLoss):
    processing: ImageProcessing

    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        pixels = torch.from_numpy(np.stack([np.asarray(row.image) for row in rows]))
        values = values_of(rows, self.targets)
        tokens = sum(len(row.ids) for row in rows)
        return Batch({"pixel_values": pixels}, values, weight_of(values, self.targets), tokens, images=len(rows))

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
        dtype = next(one.dtype for one in module.parameters())
        pixels = normalised(batch.inputs["pixel_values"], self.processing, dtype)
        return outputs_in(self.logits(module, pixels), self.targets)

    def logits(self, module: nn.Module, pixels: Tensor) -> Tensor:
        return module(pixels, **size_arguments(module, self.processing.size)).logits

    def sample_logits(self, model: LoadedModel, text: str) -> Tensor:
        """The logits of random images, by which two copies of a model are compared."""
        rows = self.random_rows(model.module, [1] * SAMPLES, torch.Generator().manual_seed(0))
        return self.predict(model.module, self.batch_of(rows).to(model.precision.device))

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        """As many images as have so many patches together, at least one for each length."""
        side, patches = self.processing.size, self.processing.patches
        count = sum(max(1, round(length / patches)) for length in lengths)
        drawn = torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8).numpy()
        return [Tokens([0] * patches, (False,) * patches, target=0.0, image=image) for image in drawn]
