"""The tiny image models of the tests are what their publishers' folders are: transformers builds and reads each."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kit.vision_models import FAMILIES, LABELS, SIZE, TIMM, images, save_folder, tiny

HEADLESS = ("dinov2", "clip", "siglip")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_tells_images_apart_and_its_folder_loads_with_all_but_a_new_head(family, tmp_path):
    model, size = tiny(family)
    pixels = images(3, size)
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    assert logits.shape == (3, len(LABELS)) and logits.std(0).min() > 0.05
    loaded, report = AutoModelForImageClassification.from_pretrained(
        save_folder(family, tmp_path), num_labels=len(LABELS), output_loading_info=True
    )
    missing = {"classifier.weight", "classifier.bias"} if family in HEADLESS else set()
    assert set(report["missing_keys"]) == missing
    if not missing and family != "deit":  # of other classes the folder's draw is another
        drawn = model.state_dict()
        assert all(torch.equal(value, drawn[name]) for name, value in loaded.state_dict().items())
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    shape = processor(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"].shape
    assert shape == (1, 3, SIZE, SIZE)
    assert (tmp_path / "preprocessor_config.json").exists() == (family not in TIMM)
