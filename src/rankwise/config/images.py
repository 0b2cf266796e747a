"""Settings of images, and how an image becomes what a model reads: one square of so many pixels, normalised.

    picture -> resize -> centre crop -> (pixels * scale - mean) / std

These values come from the model's own preprocessor_config.json (or, in timm's folders, from its config.json).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from rankwise.config.base import Config, Flag, Label
from rankwise.errors import ModelError

PATCH = 16
"""Side of the patches that an image is counted in, whatever patches a model has."""
SMALLEST, LARGEST = 16, 2048
Channels = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
INTERPOLATIONS: dict[int | str, Interpolation] = {
    0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic", "nearest": "nearest", "bilinear": "bilinear",
    "bicubic": "bicubic",
}  # fmt: skip
"""Pillow's numbers, and timm's words. Lanczos (1) does not exist for tensors, so transformers takes bicubic for it."""
WITHOUT_EFFECT = frozenset({"do_convert_rgb", "do_reduce_labels", "image_processor_type", "feature_extractor_type",
                            "processor_class", "data_format", "input_data_format", "return_tensors", "device",
                            "disable_grouping", "default_to_square", "size_divisor", "auto_map"})  # fmt: skip


def patches_of(size: int) -> int:
    """What an image of `size` pixels a side counts as where text is counted in tokens."""
    return math.ceil(size / PATCH) ** 2


class ImagesConfig(Config):
    """Images: the size that the model receives, and how training varies them. These settings have an effect only with
    the objective image-classification."""

    size: Annotated[
        Annotated[int, Field(ge=SMALLEST, le=LARGEST, strict=True)] | Literal["auto"],
        Flag("--image-size", "the model's own"), Label("Image size", "images"),
    ] = "auto"  # fmt: skip
    """Side length of the square input images, in pixels. Half the side takes about a quarter of the time. `auto` is
    the size that the model's own preprocessor uses."""
    augmentation: Annotated[
        Literal["none", "flip", "crop", "trivial"], Flag("--augmentation"), Label("Augmentation", "images")
    ] = "none"
    """Data augmentation for training images: `none`, `flip`, `crop` or `trivial`. `flip` mirrors half of the images
    left to right. `crop` also cuts out a random part (half to all of the area) and enlarges it. `trivial` also changes
    colour or shape at random (TrivialAugment, arXiv 2103.10158). Validation images are never augmented."""


class ImageProcessing(Config):
    """How an image becomes what a model reads."""

    size: int
    """Side of the square, in pixels."""
    resize: tuple[int, int] | int
    """Height and width that every image is stretched to, or the length of its shorter side."""
    interpolation: Interpolation
    mean: Channels
    std: Channels
    scale: float = 1 / 255

    @property
    def patches(self) -> int:
        """What an image counts as where text is counted in tokens."""
        return patches_of(self.size)

    def sized(self, size: int | Literal["auto"]) -> Self:
        """These settings for another image size, with the same field of view."""
        if size in ("auto", self.size):
            return self
        ratio = int(size) / self.size
        resize = self.resize
        scaled = max(int(size), round(resize * ratio)) if isinstance(resize, int) else tuple(
            max(int(size), round(side * ratio)) for side in resize
        )  # fmt: skip
        return self.model_copy(update={"size": int(size), "resize": scaled})

    def describe(self) -> str:
        how = f"shorter side to {self.resize}" if isinstance(self.resize, int) else "to {} x {}".format(*self.resize)
        return f"images are resized ({how}, {self.interpolation}) and cut to {self.size} x {self.size} pixels"

    def as_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A preprocessor_config.json with these values, beside those of the model's own that say nothing else."""
        edge, kind = self.resize, settings.get("image_processor_type")
        kept_kind = isinstance(kind, str) and "crop_pct" not in settings
        values = {
            "image_processor_type": kind if kept_kind else GENERIC,
            "do_resize": True,
            "size": {"shortest_edge": edge} if isinstance(edge, int) else {"height": edge[0], "width": edge[1]},
            "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[self.interpolation],
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        return {name: value for name, value in settings.items() if name in WITHOUT_EFFECT} | values


GENERIC = "BitImageProcessor"
"""The image processor of transformers that resizes by the shorter side and cuts out the centre."""


def processing_of(settings: Mapping[str, Any], name: str) -> ImageProcessing:
    """The values of an image processor of transformers; `name` is the folder, for messages. ModelError where it does
    something else than resizing, a centre crop and normalisation."""
    settings = {key: value for key, value in settings.items() if value is not None}
    refused = [key for key, value in settings.items() if key.startswith("do_") and value and key not in KNOWN]
    if refused or not settings.get("do_resize", True) or settings.get("rescale_offset"):
        why = refused[0] if refused else "rescale_offset" if settings.get("rescale_offset") else "do_resize false"
        raise ModelError(f"{name}: its setting {why} is not supported; images are resized, cut and normalised only.")
    resize = _sides(settings.get("size"), name)
    if "crop_pct" in settings and isinstance(resize, int):  # ConvNeXt's: below 384 pixels the crop is a part
        size = resize
        resize = (size, size) if size >= CONVNEXT_WHOLE else int(size / float(settings["crop_pct"]))
    elif settings.get("do_center_crop") or isinstance(resize, int):
        size = _one_number(_sides(settings.get("crop_size"), name), name)
    else:
        size = _one_number(resize, name)
    normal = settings.get("do_normalize", True)
    mean, std = (settings.get(key, other) for key, other in (("image_mean", 0.0), ("image_std", 1.0)))
    scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    return ImageProcessing(
        size=size,
        resize=resize,
        interpolation=_interpolation(settings.get("resample", 2), name),
        mean=_channels(mean if normal else 0.0, name),
        std=_channels(std if normal else 1.0, name),
        scale=scale,
    )


KNOWN = frozenset({"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels"})
CONVNEXT_WHOLE = 384


def processing_of_timm(pretrained: Mapping[str, Any], name: str) -> ImageProcessing:
    """The values of timm's pretrained_cfg, in whose words crop_pct is the crop's side over that of the resized
    image."""
    _, height, width = pretrained.get("input_size", (3, 224, 224))
    size = _one_number((int(height), int(width)), name)
    share, mode = float(pretrained.get("crop_pct") or 0.875), pretrained.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ModelError(f"{name}: its crop_mode {mode} is not supported; it can be center or squash.")
    edge = math.floor(size / share)
    return ImageProcessing(
        size=size, resize=edge if mode == "center" else (edge, edge),
        interpolation=_interpolation(pretrained.get("interpolation", "bilinear"), name),
        mean=_channels(pretrained.get("mean", (0.485, 0.456, 0.406)), name),
        std=_channels(pretrained.get("std", (0.229, 0.224, 0.225)), name),
    )  # fmt: skip


def _interpolation(value: object, name: str) -> Interpolation:
    if not isinstance(value, int | str) or value not in INTERPOLATIONS:
        raise ModelError(
            f"{name}: its interpolation {value!r} is not supported; it can be nearest (0), bilinear (2) or bicubic (3)."
        )
    return INTERPOLATIONS[value]


def _sides(value: Any, name: str) -> tuple[int, int] | int:
    """Height and width, or the shorter side."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value and value.get("longest_edge") is None:
            return int(value["shortest_edge"])
        if "height" in value and "width" in value:
            return int(value["height"]), int(value["width"])
    raise ModelError(f"{name}: its image size {value!r} is not supported; it can be a height and width, or the shorter "
                     "side.")  # fmt: skip


def _one_number(sides: tuple[int, int] | int, name: str) -> int:
    if isinstance(sides, int):
        return sides
    if sides[0] != sides[1]:
        raise ModelError(
            f"{name}: the model reads images of {sides[0]} x {sides[1]} pixels; only squares are supported."
        )
    return sides[0]


def _channels(value: Any, name: str) -> Channels:
    values = [value] * 3 if isinstance(value, int | float) else list(value)
    if len(values) != 3:
        raise ModelError(f"{name}: the model reads images of {len(values)} channels; only RGB, with 3, is supported.")
    return float(values[0]), float(values[1]), float(values[2])
