"""Forgetting of models of images: what became of the base's features on images that are not training data.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),      K = X X^T, L = Y Y^T     features X (N, D) and Y (N, D')

is linear CKA (Kornblith et al. 2019): 1 if both models have the same features up to rotation and scale. HSIC is the
unbiased estimate (Song et al. 2012): the usual one finds a similarity of D / (D + N) between unrelated features, and
here that is 0 on average, so a value may be slightly negative. The interval is a jackknife over twenty groups of
images. The features are what the head reads.

Whether they are still good for something is the accuracy of a linear probe on the labels of these images, for both
models and pair by pair:

    W = argmin over W of sum over images |W (x - mean) + mean(y) - y|^2 + penalty |W|^2,     y one-hot

Each image is predicted by a probe that was fitted without it, in five folds with equal shares of every class. The
penalty is the one with the least leave-one-out error on the fitted images. Features enter only as inner products,

    K = X X^T,      alpha = (K + penalty)^-1 (Y - mean),      prediction = K alpha + mean,

and penalties are relative to the size of K, so rotating or scaling all features changes no prediction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.timm_models import head_modules
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.errors import EvaluationError
from rankwise.evaluation.class_metrics import one_target
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.metrics import METRICS, means
from rankwise.evaluation.validation_rows import refuse_training_files
from rankwise.objectives.image_classification.encode import ImageWriting
from rankwise.objectives.image_classification.loss import ImageLoss
from rankwise.rows.classes import read_targets
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.measured import FeatureForgetting, Measurement
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.runs.snapshot import RunSnapshot

Numbers = NDArray[np.float64]
Features = Callable[[Any], NDArray[Any]]
"""Maps a batch of images to the features (B, D) of the last layer."""
GROUPS = 20
STUDENT = 2.093024054408263
"""The 97.5 % quantile of Student's t with GROUPS - 1 degrees of freedom."""
FEWEST = 2 * GROUPS
FOLDS, SEED = 5, 0
PENALTIES = np.logspace(-5, 2, 15)
"""Ridge penalties to choose the probe's from, relative to the mean squared length of a centred feature vector."""


def feature_forgetting(
    base: Features, tuned: Features, batches: Iterable[NDArray[Any]], labels: Sequence[int] | None,
    classes: Sequence[str], data: str, callback: Callback = silent, total: int | None = None,
) -> FeatureForgetting:  # fmt: skip
    """Run both models over the same batches of images. `labels` are numbers of `classes`, and None leaves the probe
    out."""
    digest, parts = sha256(), tuple[list[Numbers], list[Numbers]](([], []))
    for batch in batches:
        digest.update(np.ascontiguousarray(batch).tobytes())
        for side, features in zip(parts, (base, tuned), strict=True):
            side.append(np.asarray(features(batch), np.float64))
        done = sum(map(len, parts[0]))
        callback(ProgressUpdate("Comparing features", done, total or done, "images"))
    x, y = (np.concatenate(side) if side else np.empty((0, 1)) for side in parts)
    _check(x, y, labels, classes)
    digest.update(np.asarray(labels or (), "<i8").tobytes())
    grams = [(side - side.mean(0)) @ (side - side.mean(0)).T for side in (x, y)]
    probe = None
    if labels is not None:
        hits = [means(probe_hits(gram, labels)) for gram in grams]
        probe = difference(METRICS["accuracy"], *hits)
    return FeatureForgetting(
        cka=cka(*grams), probe=probe, images=len(x), data=data, sha256=digest.hexdigest(),
        classes=tuple(classes) if labels is not None else (),
    )  # fmt: skip


def _check(x: Numbers, y: Numbers, labels: Sequence[int] | None, classes: Sequence[str]) -> None:
    if len(x) < FEWEST:
        raise EvaluationError(f"comparing features needs at least {FEWEST} images, and there are {len(x)}.")
    if len(x) != len(y) or (labels is not None and len(labels) != len(x)):
        raise EvaluationError(f"there are features of {len(x)} and {len(y)} images, with {len(labels or ())} labels.")
    number, rarest = min(Counter(labels or ()).items(), key=lambda item: item[1], default=(0, FOLDS))
    if rarest < FOLDS:
        raise EvaluationError(
            f"a linear probe needs at least {FOLDS} images of each class, and there are {rarest} of "
            f'"{classes[number]}".'
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        count = np.count_nonzero(~np.isfinite(x)) + np.count_nonzero(~np.isfinite(y))
        raise EvaluationError(f"{count:,} features are not finite: the weights of one of the two models are damaged.")


def cka(base: Numbers, tuned: Numbers) -> Measurement:
    """Compute linear CKA with its interval from the inner products (N, N) of each model's centred features."""
    value, groups = cka_value(base, tuned), np.arange(len(base)) % GROUPS
    without = []
    for group in range(GROUPS):
        rest = np.ix_(groups != group, groups != group)
        without.append(cka_value(base[rest], tuned[rest]))
    half = STUDENT * math.sqrt((GROUPS - 1) * float(np.var(without)))
    return Measurement(value=value, low=value - half, high=max(value, min(1.0, value + half)))


def cka_value(base: Numbers, tuned: Numbers) -> float:
    """Return 0 where one model gives all images the same features."""
    both, own, other = _hsic(base, tuned), _hsic(base, base), _hsic(tuned, tuned)
    return both / math.sqrt(own * other) if own > 0 and other > 0 else 0.0


def _hsic(first: Numbers, other: Numbers) -> float:
    """Estimate the Hilbert-Schmidt independence criterion without bias; its factor 1 / (n (n - 3)) cancels in CKA."""
    n = len(first)
    first, other = (gram - np.diag(np.diag(gram)) for gram in (first, other))
    rows, others = first.sum(1), other.sum(1)
    return float(
        (first * other).sum() + rows.sum() * others.sum() / ((n - 1) * (n - 2)) - 2 * (rows @ others) / (n - 2)
    )


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
    tuned = features_of(model.module, ImageLoss(images.targets, model.processing))

    def of_base(pixels: NDArray[Any]) -> NDArray[Any]:
        with base():
            return tuned(pixels)

    rows, classes = images.rows, images.targets.classes
    batches = (
        np.stack([np.asarray(row.image) for row in rows[at : at + AT_ONCE]]) for at in range(0, len(rows), AT_ONCE)
    )
    labels = [int(one_target(row)) for row in rows] if classes else None
    return feature_forgetting(
        of_base, tuned, batches, labels, classes, images.about, callback=callback, total=len(rows)
    )


def features_of(module: nn.Module, loss: ImageLoss) -> Features:
    """Make a function from pixels (B, S, S, 3) to features (B, D); if the head reads several for an image, to their
    mean."""
    head = module.get_submodule(head_modules(module, images=True)[0])
    device = next(module.parameters()).device

    @torch.no_grad()
    def features(pixels: NDArray[Any]) -> NDArray[Any]:
        patches = loss.processing.patches
        rows = [Tokens([0] * patches, (False,) * patches, target=0.0, image=image) for image in pixels]
        (batch,) = loss.batches(rows, patches * len(rows))
        read: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            loss.predict(module, batch.to(device))
        finally:
            hook.remove()
        return _pooled(read[-1]).double().cpu().numpy()

    return features


def _pooled(read: Tensor) -> Tensor:
    """(B, D) stays, tokens (B, T, D) and maps (B, D, H, W) are averaged."""
    return read.mean(1) if read.dim() == 3 else read.flatten(2).mean(2) if read.dim() == 4 else read


def probe_hits(gram: Numbers, labels: Sequence[int]) -> list[bool]:
    """Tell for each image whether the probe predicts its class. `gram` (N, N) has the features' inner products."""
    numbers, classes = np.asarray(labels), np.unique(labels)
    folds = _folds(numbers)
    targets = (numbers[:, None] == classes).astype(np.float64)
    predicted = np.zeros(len(numbers), np.int64)
    for fold in range(FOLDS):
        fitted, left_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        values, _ = fit_and_predict(gram[np.ix_(fitted, fitted)], gram[np.ix_(left_out, fitted)], targets[fitted])
        predicted[left_out] = classes[values.argmax(1)]
    return (predicted == numbers).tolist()


def _folds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the images of each class in a random order that depends on the labels alone."""
    folds, generator = np.zeros(len(labels), np.int64), np.random.default_rng(SEED)
    for number in np.unique(labels):
        own = np.flatnonzero(labels == number)
        folds[generator.permutation(own)] = np.arange(len(own)) % FOLDS
    return folds


def fit_and_predict(among: Numbers, between: Numbers, targets: Numbers) -> tuple[Numbers, Numbers]:
    """Predict others, and each fitted row by a probe without it. `among` holds the inner products of the fitted rows,
    `between` those of the others with them."""
    rows, middle, mean = among.mean(1), among.mean(), targets.mean(0)
    centred = among - rows - rows[:, None] + middle
    lengths, vectors = np.linalg.eigh(centred)
    lengths = np.maximum(lengths, 0)
    turned = vectors.T @ (targets - mean)
    penalties = PENALTIES * max(float(lengths.sum()) / len(among), 1e-300)
    best = min(penalties, key=lambda penalty: float((_left_out(lengths, penalty, vectors, turned) ** 2).sum()))
    weights = vectors @ (turned / (lengths + best)[:, None])
    without = targets - _left_out(lengths, best, vectors, turned)
    return (between - rows - between.mean(1)[:, None] + middle) @ weights + mean, without


def _left_out(lengths: Numbers, penalty: float, vectors: Numbers, turned: Numbers) -> Numbers:
    """The error of each fitted row under a probe, with its mean, that was fitted without it. The constant vector, which
    centring made an eigenvector of length 0, belongs to the mean and not to the penalised weights."""
    weights = vectors @ (turned / (lengths + penalty)[:, None])
    own = (vectors**2 / (lengths + penalty)).sum(1) - 1 / (penalty * len(lengths))
    return weights / own[:, None]
