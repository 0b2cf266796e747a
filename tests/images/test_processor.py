"""Preprocessing: the pixels that each family's own processor gives, at its own size and at another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kit.vision_models import FAMILIES, TIMM, save_folder
from rankwise.base.preprocessing import PREPROCESSOR, processing_in, save_processing
from rankwise.config.images import ImageProcessing, processing_of, processing_of_timm
from rankwise.errors import ModelError
from rankwise.rows.images.processor import normalised, pixels_of

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
SQUARE = {"height": 32, "width": 32}
PLAIN: dict[str, Any] = {
    "do_resize": True, "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": SQUARE, "resample": 3,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}  # fmt: skip


def ours(processing: ImageProcessing) -> torch.Tensor:
    return normalised(torch.from_numpy(pixels_of(PICTURE, processing))[None], processing, torch.float32)


def theirs(folder: Path) -> torch.Tensor:
    return AutoImageProcessor.from_pretrained(folder)(PICTURE, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_the_familys_own_processor(family: str, tmp_path: Path) -> None:
    folder = save_folder(family, tmp_path)
    processing = processing_in(folder)
    apart = (ours(processing) - theirs(folder)).abs().max().item() * min(processing.std)
    assert apart <= (1.01 / 255 if family in TIMM else 1e-6)  # timm resizes by Pillow, which rounds in another place


@pytest.mark.parametrize("size", [32, 48, 21])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_as_the_same_by_transformers_and_by_rankwise(
    family: str, size: int, tmp_path: Path
) -> None:  # fmt: skip
    folder = save_folder(family, tmp_path / "model")
    processing = processing_in(folder).sized(size)
    (tmp_path / "beside").mkdir()
    save_processing(processing, folder, tmp_path / "beside")
    (tmp_path / "beside" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert processing_in(tmp_path / "beside") == processing
    assert torch.allclose(theirs(tmp_path / "beside"), ours(processing), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_size_has_the_same_field_of_view(family: str, tmp_path: Path) -> None:
    own = processing_in(save_folder(family, tmp_path))
    large = own.sized(2 * own.size)
    assert large.size == 2 * own.size and own.sized("auto") == own.sized(own.size) == own
    before, after = (pixels_of(PICTURE, one).astype(float).mean((0, 1)) for one in (own, large))
    assert np.allclose(before, after, atol=2)


def test_a_model_reads_what_its_processing_makes(tmp_path: Path) -> None:
    folder = save_folder("vit", tmp_path)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(model(ours(processing_in(folder))).logits, model(theirs(folder)).logits, atol=1e-5)


def test_values_are_read_as_they_are() -> None:
    found = processing_of(PLAIN, "folder")
    assert (found.size, found.resize, found.interpolation, found.mean) == (32, 36, "bicubic", (0.5, 0.5, 0.5))
    assert processing_of(PLAIN | {"do_normalize": False}, "folder").std == (1.0, 1.0, 1.0)
    assert processing_of(PLAIN | {"do_rescale": False}, "folder").scale == 1.0
    assert processing_of(PLAIN | {"size": SQUARE, "do_center_crop": False}, "folder").resize == (32, 32)


@pytest.mark.parametrize(("change", "named"), [
    ({"do_pad": True}, "do_pad"), ({"do_resize": False}, "do_resize"), ({"rescale_offset": True}, "rescale_offset"),
    ({"crop_size": {"height": 32, "width": 16}}, "32 x 16"), ({"image_mean": [0.5]}, "1 channels"),
    ({"size": {"longest_edge": 40}}, "longest_edge"), ({"resample": 4}, "interpolation 4 is not supported"),
])  # fmt: skip
def test_what_is_more_than_resizing_cutting_and_normalising_is_refused_by_name(
    change: dict[str, Any], named: str
) -> None:  # fmt: skip
    with pytest.raises(ModelError, match=named):
        processing_of(PLAIN | change, "folder")


@pytest.mark.parametrize("setting", [{"crop_mode": "border"}, {"interpolation": "lanczos"}])
def test_what_timm_does_otherwise_is_refused_by_name(setting: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=next(iter(setting.values()))):
        processing_of_timm(setting, "config.json")


def test_a_folder_without_preprocessing_is_refused(tmp_path: Path) -> None:
    folder = save_folder("vit", tmp_path)
    (folder / PREPROCESSOR).unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        processing_in(folder)
