"""Features of a model of images, which are what its head reads, on labelled images that are not training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.data.classes import read_targets
from rankwise.data.preparing import prepare, refuse_fatal
from rankwise.data.sequences import evenly
from rankwise.data.writing import ImageWriting
from rankwise.evaluation.class_metrics import one_target
from rankwise.evaluation.feature_forgetting import Features, feature_forgetting
from rankwise.evaluation.validation_rows import refuse_training_files
from rankwise.models.heads import head_modules
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.image_classification import ImageClassification
from rankwise.runs.data_report import TargetFacts
from rankwise.runs.feature_forgetting import FeatureForgetting
from rankwise.runs.records import Callback
from rankwise.runs.snapshot import RunSnapshot
from rankwise.text.tokenize import Tokens

MOST, AT_ONCE = 1000, 32
"""Images that are compared at most, and images in a batch."""


@dataclass(frozen=True)
class OtherImages:
    rows: Sequence[Tokens]
    targets: TargetFacts
    about: str


def other_images(model: LoadedModel, path: str, run: RunSnapshot | None, callback: Callback) -> OtherImages:
    """Read labelled images as the model sees them. Files that the run was trained on are refused."""
    assert model.processing is not None, "a model of images"
    data = DataConfig(path=path, held_out=0)
    targets = read_targets(data, ClassificationConfig())
    prepared = prepare(data, ImageWriting(model.source.name, model.processing, targets), callback)
    refuse_fatal(prepared.data_report, trains=False)
    if run is not None:
        refuse_training_files(run, {file.sha256: file.name for file in prepared.data_report.files})
    rows, name = prepared.trained_rows, Path(path).name
    chosen = evenly(rows, MOST)
    return OtherImages(chosen, targets, name if len(chosen) == len(rows) else f"{name} ({len(rows):,} in all)")


def compare_features(
    model: LoadedModel, base: Callable[[], AbstractContextManager[LoadedModel]], images: OtherImages, callback: Callback
) -> FeatureForgetting:
    """`base` makes the model its own base for a while."""
    assert model.processing is not None, "a model of images"
    tuned = features_of(model.module, ImageClassification(images.targets, model.processing))

    def of_base(pixels: NDArray[Any]) -> NDArray[Any]:
        with base():
            return tuned(pixels)

    rows, classes = images.rows, images.targets.classes
    batches = (
        np.stack([np.asarray(row.image) for row in rows[at : at + AT_ONCE]]) for at in range(0, len(rows), AT_ONCE)
    )
    labels = [int(one_target(row)) for row in rows] if classes else None
    return feature_forgetting(of_base, tuned, batches, labels, classes, images.about, callback, len(rows))


def features_of(module: nn.Module, objective: ImageClassification) -> Features:
    """Make a function from pixels (B, S, S, 3) to features (B, D); if the head reads several for an image, to their
    mean."""
    head = module.get_submodule(head_modules(module, images=True)[0])
    device = next(module.parameters()).device

    @torch.no_grad()
    def features(pixels: NDArray[Any]) -> NDArray[Any]:
        patches = objective.processing.patches
        rows = [Tokens([0] * patches, (False,) * patches, target=0.0, image=image) for image in pixels]
        (batch,) = objective.batches(rows, patches * len(rows))
        read: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            objective.predict(module, batch.to(device))
        finally:
            hook.remove()
        return _pooled(read[-1]).double().cpu().numpy()

    return features


def _pooled(read: Tensor) -> Tensor:
    """(B, D) stays, tokens (B, T, D) and maps (B, D, H, W) are averaged."""
    return read.mean(1) if read.dim() == 3 else read.flatten(2).mean(2) if read.dim() == 4 else read
