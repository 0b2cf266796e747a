"""Image classification: predict one class, or one number, for a whole image.

    pixels (B, S, S, 3) -> (pixels * scale - mean) / std -> model -> logits (B, C)

The loss is that of every classifier (objective.py). The model is one of transformers or timm, with a new head whose
weights are drawn anew and trained whole beside an adapter. Pixels reach the device as whole numbers and are normalised
there.
"""

from __future__ import annotations

from typing import Any

import torch

from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import size_arguments
from rankwise.base.timm_models import head_modules, is_timm, set_config
from rankwise.config.images import ImageProcessing
from rankwise.errors import ModelError, first_line, is_out_of_memory
from rankwise.objectives.classifier import Classifier, head_settings
from rankwise.objectives.image_classification.encode import ImageRows
from rankwise.objectives.image_classification.head import ImageHead, ImageInputs
from rankwise.objectives.image_classification.loss import ImageLoss
from rankwise.objectives.objective import Facts, Objective, Score, head_words
from rankwise.runs.records import Callback, WarningMessage

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


def image_classification(facts: Facts) -> Objective:
    targets, processing = facts.targets, facts.processing
    assert targets is not None and processing is not None, "both are read before"
    loss = ImageLoss(targets, processing)
    asked = "{model} classifies images and writes no text. Use: rankwise predict {name} --data FOLDER --out FILE"

    def finish(loaded: LoadedModel, callback: Callback) -> LoadedModel:
        _check(loaded, processing, callback)
        if is_timm(loaded.module):
            set_config(loaded.module, targets.classes, processing)
        return loaded

    kind = ModelKind(
        "AutoModelForImageClassification", "a model that classifies images", head_seed=facts.seed,
        settings=head_settings(targets), processing=processing, finish=finish,
    )  # fmt: skip
    return Objective(
        NAME, "classes", facts, kind,
        words=head_words(
            targets, loading=LOADING, pipeline_tag=NAME, row="image", shown_as="images",
            advises="language models and classifiers of texts, and this model reads images.",
            cannot={"generating": asked},
        ),
        rows=ImageRows(targets, processing=processing), loss=loss, score=Score.of_classes(targets),
        classifier=Classifier(ImageInputs(targets, processing), loss), head=ImageHead(targets, loss),
    )  # fmt: skip


def _check(loaded: LoadedModel, processing: ImageProcessing, callback: Callback) -> None:
    """ModelError where the model has no head of a known name, or does not accept images of this size."""
    if not head_modules(loaded.module, images=True):
        raise ModelError(
            f"{loaded.source.folder}: this {type(loaded.module).__name__} has no head of a known name, so it "
            "cannot be trained to classify images."
        )  # fmt: skip
    _check_size(loaded, processing.size)
    if unread := _unread(loaded.module.config, processing):
        callback(WarningMessage(unread))


def _unread(config: Any, processing: ImageProcessing) -> str | None:
    """A transformer reads whole patches only; Swin, which has windows of patches, fills up the last ones."""
    own = getattr(config, "vision_config", None) or config
    side, patch = processing.size, getattr(own, "patch_size", None)
    if not isinstance(patch, int) or hasattr(own, "window_size") or side % patch == 0:
        return None
    return (
        f"the model reads patches of {patch} x {patch} pixels, so it never sees the last {side % patch} columns "
        f"and rows of images of {side} x {side} pixels. Use --image-size {side - side % patch} or "
        f"{side - side % patch + patch} to avoid this"
    )


@torch.no_grad()
def _check_size(loaded: LoadedModel, side: int) -> None:
    """ModelError where the model does not accept images of this size."""
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
