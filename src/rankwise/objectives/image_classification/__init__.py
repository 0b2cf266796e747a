"""Image classification: predict one class, or one number, for a whole image.

    pixels (B, S, S, 3) -> (pixels * scale - mean) / std -> model -> logits (B, C)

The loss is that of every classifier (objective.py). The model is one of transformers or timm, with a new head whose
weights are drawn anew and trained whole beside an adapter. Pixels reach the device as whole numbers and are normalised
there.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import processing_in, size_arguments
from rankwise.base.sources import find
from rankwise.base.timm_models import head_modules, is_timm, set_config
from rankwise.config.base import shown
from rankwise.config.experiment import RowSettings
from rankwise.config.images import ImageProcessing
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError, ModelError, first_line, is_out_of_memory
from rankwise.objectives.image_classification.encode import ImageEncoder, ImageWriting, PixelFile
from rankwise.objectives.objective import AsWritten, Graph, WithHead, head_settings, outputs_in, values_of, weight_of
from rankwise.objectives.predictions import Longest
from rankwise.rows.classes import read_targets
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.images.processor import cropped, need_vision, normalised
from rankwise.rows.text.example import Example, ImageContent
from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, WarningMessage
from rankwise.runs.row_facts import Pooling
from rankwise.system.cache import cache_folder

NAME = "image-classification"
LOADING = """\
```python
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
base = AutoModelForImageClassification.from_pretrained(
    "path/or/name/of/base", num_labels=OUTPUTS, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
print(model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")).logits)
```

The outputs are in the order of `targets.classes` in `data_report.json`. Or with rankwise, for a folder of images:

```
rankwise predict path/to/this/folder --data images/ --out predictions.csv
```"""
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
SAMPLES = 2
"""Images by which two copies of a model are compared."""
IMAGE_TOLERANCES = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.06}
"""Images are resized by another library in other software, which changes pixels by one step of 255 here and there."""


@dataclass(frozen=True)
class ImageClassification(WithHead):
    processing: ImageProcessing
    seed: int = 0
    """Draws the new head's weights."""
    name = NAME
    pipeline_tag, loading_code, row = NAME, LOADING, "image"
    tolerances = IMAGE_TOLERANCES
    shown_as = "images"
    largest_request = 2**24
    advises = "language models and classifiers of texts, and this model reads images."

    @classmethod
    def of(cls, rows: RowSettings, callback: Callback, begun: Pooling | None) -> Self:
        targets = read_targets(rows.data, rows.classification)
        return cls(targets, processing_in(find(rows.base, callback).folder).sized(rows.images.size), rows.seed)

    @classmethod
    def of_report(cls, data_report: DataReport) -> Self:
        targets, processing = data_report.targets, data_report.image_processing
        assert targets is not None and processing is not None, "the report is of images"
        return cls(targets, processing)

    def load(self, config: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        need_vision(f"the objective {NAME}")
        loaded = super().load(config, callback, checked=checked)
        if not head_modules(loaded.module, images=True):
            raise ModelError(
                f"{loaded.source.folder}: this {type(loaded.module).__name__} has no head of a known name, so it "
                "cannot be trained to classify images."
            )  # fmt: skip
        self._check_size(loaded)
        if checked and (unread := self._unread(loaded.module.config)):
            callback(WarningMessage(unread))
        if is_timm(loaded.module):
            set_config(loaded.module, self.targets.classes, self.processing)
        return loaded

    def merged_config(self, base: dict[str, Any], module: nn.Module, tokenizer: HubTokenizer | None) -> dict[str, Any]:
        if is_timm(module):
            set_config(module, self.targets.classes, self.processing)
        return super().merged_config(base, module, tokenizer)

    def _unread(self, config: Any) -> str | None:
        """A transformer reads whole patches only; Swin, which has windows of patches, fills up the last ones."""
        own = getattr(config, "vision_config", None) or config
        side, patch = self.processing.size, getattr(own, "patch_size", None)
        if not isinstance(patch, int) or hasattr(own, "window_size") or side % patch == 0:
            return None
        return (
            f"the model reads patches of {patch} x {patch} pixels, so it never sees the last {side % patch} columns "
            f"and rows of images of {side} x {side} pixels. Use --image-size {side - side % patch} or "
            f"{side - side % patch + patch} to avoid this"
        )

    @torch.no_grad()
    def _check_size(self, loaded: LoadedModel) -> None:
        """ModelError where the model does not accept images of this size."""
        side = self.processing.size
        try:
            blank = torch.zeros(1, 3, side, side, dtype=loaded.precision.dtype, device=loaded.precision.device)
            loaded.module(blank, **size_arguments(loaded.module, side))
        except Exception as error:  # what models raise for a size that they do not take
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{loaded.source.folder}: the model accepts no images of {side} x {side} pixels (images.size): "
                f"{first_line(error)}."
            ) from None

    @property
    def cannot(self) -> Mapping[str, str]:
        asked = "{model} classifies images and writes no text. Use: rankwise predict {name} --data FOLDER --out FILE"
        return {**super().cannot, "generating": asked}

    @property
    def kind(self) -> ModelKind:
        return ModelKind(
            "AutoModelForImageClassification",
            "a model that classifies images",
            head_seed=self.seed,
            settings=head_settings(self.targets),
            processing=self.processing,
        )

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """The head, and the modules inside the body whose weights the folder lacks."""
        return tuple(dict.fromkeys([*head_modules(model.module, images=True), *model.new_modules]))

    def row_encoding(self, model: LoadedModel) -> ImageWriting:
        return ImageWriting(model.source.name, self.processing, self.targets)

    def writing_alone(self, config: ModelConfig, callback: Callback, *, guessed: bool) -> ImageWriting:
        return ImageWriting(config.name, self.processing, self.targets)

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

    def shown(self, model: LoadedModel, rows: Sequence[Tokens], count: int, as_written: AsWritten) -> list[Example]:
        """Examples of the rows whose images are still files on the disk."""
        files = [path for row in rows if row.name is not None and (path := Path(row.name)).is_file()]
        return [Example((), str(path), image=ImageContent(path)) for path in evenly(files, count)]

    def question(self, outcome: Outcome) -> dict[str, Any]:
        return {"image": str(Path(outcome.example.where).absolute())}

    def graph(self, model: LoadedModel, limit: int) -> Graph:
        def logits(images: Tensor) -> Tensor:
            pixels = cropped(images, self.processing).permute(0, 2, 3, 1)
            return self._logits(model.module, normalised(pixels, self.processing, images.dtype))

        axes = {0: "batch", 2: "height", 3: "width"}
        return Graph(model.module, logits, {"pixel_values": torch.zeros(2, 3, 48, 64)}, axes, "vit")

    @property
    def row_length(self) -> int:
        return self.processing.patches

    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        pixels = torch.from_numpy(np.stack([np.asarray(row.image) for row in rows]))
        values = values_of(rows, self.targets)
        tokens = sum(len(row.ids) for row in rows)
        return Batch({"pixel_values": pixels}, values, weight_of(values, self.targets), tokens, images=len(rows))

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
        dtype = next(one.dtype for one in module.parameters())
        pixels = normalised(batch.inputs["pixel_values"], self.processing, dtype)
        return outputs_in(self._logits(module, pixels), self.targets)

    def _logits(self, module: nn.Module, pixels: Tensor) -> Tensor:
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
