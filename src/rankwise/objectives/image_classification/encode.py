"""From image rows to encoded rows: decoded, resized as the model expects, with the class as the only target.

An image is decoded once, before training, so what is wrong with one is known before the first step. The
pixels of many images lie in a file without a name, of which the system reads pages as they are needed. Its space is
free again when the last view is gone, also where the process is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.objectives.rows import ObjectiveRows
from rankwise.rows.images.decode import DecodedImage, decode, record_of
from rankwise.rows.images.processor import pixels_of
from rankwise.rows.text.example import Example, ImageRecord
from rankwise.rows.text.outcome import EncodingFacts, Outcome, read_each
from rankwise.rows.text.targets import RowTargets
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import TargetFacts
from rankwise.system.extras import installed_version
from rankwise.system.files import told_when_full, unnamed_file


class PixelFile:
    """Images (S, S, 3) uint8, one after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None

    def add(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Write images of one shape, and return views of them in the file."""
        if not images:
            return []
        with told_when_full(self._folder):
            if self._file is None:
                self._file = unnamed_file(self._folder)
            begin = self._file.seek(0, 2)
            for image in images:
                self._file.write(image.tobytes())
            self._file.flush()
        shape = (len(images), *images[0].shape)
        return list(np.memmap(self._file, np.uint8, "r", begin, shape))


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes images that have no class, because it is to be predicted."""

    processing: ImageProcessing
    file: PixelFile | None = None
    """Where the pixels of many images lie that are in no column."""

    @property
    def limit(self) -> int:
        """Every image has the same size."""
        return self.processing.patches

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, self._read)
        pixels = [pixels for _, (pixels, _, _) in usable]
        views = pixels if self.file is None else self.file.add(pixels)
        for (outcome, (_, target, record)), view in zip(usable, views, strict=True):
            outcome.sequences = [self._tokens(view, target, outcome.example.where)]
            outcome.lengths, outcome.image = [self.limit], record
        return outcomes

    def _read(self, example: Example) -> tuple[np.ndarray, float | None, ImageRecord | None]:
        """The pixels of an image, and its target and what is known of it where it is learned."""
        return pixels_of(decoded(example).picture, self.processing), None, None

    def _tokens(self, pixels: np.ndarray, target: float | None, name: str) -> Tokens:
        nothing = np.zeros(self.limit, np.int32)
        return Tokens(nothing, nothing.astype(bool), target=target, image=pixels, name=name)


@dataclass(frozen=True)
class LabelledEncoder(ImageEncoder):
    targets: RowTargets = field(kw_only=True)

    def _read(self, example: Example) -> tuple[np.ndarray, float, ImageRecord]:
        target, image = self.targets.of(example), decoded(example)
        return pixels_of(image.picture, self.processing), target, record_of(image)


def decoded(example: Example) -> DecodedImage:
    if example.image is None:
        raise DataError(f"{example.where}: is a row without an image, and the model reads images.")
    return decode(example.image, example.where)


@dataclass(frozen=True)
class ImageWriting:
    """Images by the values of a model's own preprocessor."""

    name: str
    processing: ImageProcessing
    learned: TargetFacts

    def by(self, config: DataConfig) -> ImageWriting:
        return self

    def encoder(self, config: DataConfig) -> ImageEncoder:
        return LabelledEncoder(self.processing, targets=RowTargets(self.learned))

    @property
    def facts(self) -> EncodingFacts:
        return EncodingFacts(self.learned, processing=self.processing, reads=frozenset({"images", "lists"}))

    def new_tokens(self, rows: Iterable[Tokens]) -> None:
        return None

    @property
    def identity(self) -> str:
        libraries = " ".join(map(installed_version, ("torchvision", "pillow")))
        return f"{self.processing.model_dump_json()} {libraries} {self.learned.model_dump_json()}"


@dataclass(frozen=True)
class ImageRows(ObjectiveRows):
    processing: ImageProcessing = field(kw_only=True)

    def encoding(self, model: LoadedModel) -> ImageWriting:
        return self._encoding(model.source.name)

    def encoding_alone(self, config: ModelConfig, callback: Callback, *, guessed: bool) -> ImageWriting:
        return self._encoding(config.name)

    def _encoding(self, name: str) -> ImageWriting:
        assert isinstance(self.learned, TargetFacts), "images have targets"
        return ImageWriting(name, self.processing, self.learned)
