"""The head of a classifier of images, what other software is given of it, and images that are to be predicted."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.timm_models import is_timm, set_config
from rankwise.config.base import shown
from rankwise.config.images import ImageProcessing
from rankwise.errors import DataError
from rankwise.objectives.classifier import AsWritten, ClassHead, Graph, RowInputs
from rankwise.objectives.image_classification.encode import ImageEncoder, PixelFile
from rankwise.objectives.image_classification.loss import ImageLoss
from rankwise.objectives.predictions import Longest
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.images.processor import cropped, normalised
from rankwise.rows.text.example import Example, ImageContent
from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.system.cache import cache_folder

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
IMAGE_TOLERANCES = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.06}
"""Images are resized by another library in other software, which changes pixels by one step of 255 here and there."""


@dataclass(frozen=True)
class ImageInputs(RowInputs):
    processing: ImageProcessing
    largest_request = 2**24

    def example_of(self, item: Any, where: str) -> Example:
        """An image, or a data URL of one."""
        if isinstance(item, str) and (url := DATA_URL.match(item)) is not None:
            try:
                item = b64decode(item[url.end() :], validate=True)
            except ValueError:
                raise DataError(f"{where}: its data URL is not base64.") from None
        if not isinstance(item, bytes):
            raise DataError(f"{where}: is {shown(item)}; this classifier reads images, as data:image/png;base64,…")
        return Example((), where, image=ImageContent(item))

    def requested(self, item: Any, where: str, read: Callable[[dict[str, Any]], Example]) -> Example:
        """A row of a file may name an image on the disk."""
        return self.example_of(item, where)

    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        return ImageEncoder(self.processing, PixelFile(cache_folder() / "pixels")).encode(examples)


@dataclass(frozen=True)
class ImageHead(ClassHead):
    loss: ImageLoss
    images = True
    tolerances = IMAGE_TOLERANCES

    def merged_config(self, base: dict[str, Any], module: nn.Module, tokenizer: HubTokenizer | None) -> dict[str, Any]:
        if is_timm(module):
            set_config(module, self.targets.classes, self.loss.processing)
        return super().merged_config(base, module, tokenizer)

    def examples(self, model: LoadedModel, rows: Sequence[Tokens], count: int, as_written: AsWritten) -> list[Example]:
        """Examples of the rows whose images are still files on the disk."""
        files = [path for row in rows if row.name is not None and (path := Path(row.name)).is_file()]
        return [Example((), str(path), image=ImageContent(path)) for path in evenly(files, count)]

    def question(self, outcome: Outcome) -> dict[str, Any]:
        return {"image": str(Path(outcome.example.where).absolute())}

    def graph(self, model: LoadedModel, limit: int) -> Graph:
        def logits(images: Tensor) -> Tensor:
            pixels = cropped(images, self.loss.processing).permute(0, 2, 3, 1)
            return self.loss.logits(model.module, normalised(pixels, self.loss.processing, images.dtype))

        axes = {0: "batch", 2: "height", 3: "width"}
        return Graph(model.module, logits, {"pixel_values": torch.zeros(2, 3, 48, 64)}, axes, "vit")
