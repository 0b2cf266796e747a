"""From image rows to encoded rows: decoded, resized as the model expects, with the class as the only target.

An image is decoded once, before training, so what is wrong with one is known before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankwise.config.images import ImageProcessing
from rankwise.errors import DataError
from rankwise.images.decode import decode
from rankwise.images.perceptual import record_of
from rankwise.images.pixels import PixelFile
from rankwise.images.processor import pixels_of
from rankwise.runs.data_report import TargetFacts
from rankwise.text.example import Example
from rankwise.text.outcome import Outcome
from rankwise.text.targets import RowTargets
from rankwise.text.tokenize import Tokens


@dataclass(frozen=True)
class ImageEncoder:
    processing: ImageProcessing
    targets: TargetFacts | None
    """None for images without labels, which are only to be predicted."""
    file: PixelFile | None = None
    """Where the pixels of many images lie that are in no column."""

    @property
    def limit(self) -> int:
        """Every image has the same size."""
        return self.processing.patches

    @cached_property
    def _targets(self) -> RowTargets | None:
        return None if self.targets is None else RowTargets(self.targets)

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes = [Outcome(example) for example in examples]
        usable: list[tuple[Outcome, np.ndarray, float | None]] = []
        for outcome in outcomes:
            try:
                target = None if self._targets is None else self._targets.of(outcome.example)
                usable.append((outcome, self._pixels(outcome), target))
            except DataError as error:
                outcome.problem = str(error)
        pixels = [pixels for _, pixels, _ in usable]
        views = pixels if self.file is None else self.file.add(pixels)
        for (outcome, _, target), view in zip(usable, views, strict=True):
            outcome.sequences = [self._tokens(view, target, outcome.example.where)]
            outcome.lengths = [self.limit]
        return outcomes

    def _pixels(self, outcome: Outcome) -> np.ndarray:
        example = outcome.example
        if example.image is None:
            raise DataError(f"{example.where}: is a row without an image, and the model reads images.")
        image = decode(example.image, example.where)
        if self.targets is not None:
            outcome.image = record_of(image)
        return pixels_of(image.picture, self.processing)

    def _tokens(self, pixels: np.ndarray, target: float | None, name: str) -> Tokens:
        nothing = np.zeros(self.limit, np.int32)
        return Tokens(nothing, nothing.astype(bool), target=target, image=pixels, name=name)


def looked_at(example: Example) -> Outcome:
    """Decode the image of a row without a model. A row of text stays as it is."""
    outcome = Outcome(example)
    if example.image is not None:
        try:
            outcome.image = record_of(decode(example.image, example.where))
        except DataError as error:
            outcome.problem = str(error)
    return outcome
