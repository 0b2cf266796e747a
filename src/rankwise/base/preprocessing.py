"""The image preprocessing of a model's folder, read and written, and how its model takes images of another size."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.base.config_check import is_timm_config
from rankwise.config.images import ImageProcessing, processing_of, processing_of_timm
from rankwise.errors import ModelError, first_line
from rankwise.system.extras import need_extra
from rankwise.system.files import write_json
from rankwise.system.foreign_json import read_json

PREPROCESSOR, CONFIG = "preprocessor_config.json", "config.json"


def processing_in(folder: Path) -> ImageProcessing:
    """ModelError where the folder has none, or one that does more than resize, cut and normalise."""
    config = read_json(folder / CONFIG)
    if is_timm_config(config):
        return processing_of_timm(config["pretrained_cfg"], str(folder / CONFIG))
    return processing_of(_settings(folder), str(folder))


def _settings(folder: Path) -> dict[str, Any]:
    """All settings of the folder's image processor, also those that its file leaves to the processor's class."""
    from transformers import AutoImageProcessor

    if not ((folder / PREPROCESSOR).is_file() or (folder / "processor_config.json").is_file()):  # the newer name
        raise ModelError(f"{folder} has no {PREPROCESSOR}, so it is unknown how images become what the model reads.")
    need_extra("torchvision", f"{folder}: a model of images", "vision", ModelError)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        return processor.to_dict()
    except Exception as error:  # as many kinds as there are processors
        raise ModelError(f"{folder} has no image processor that can be loaded: {first_line(error)}") from None


def save_processing(processing: ImageProcessing, source: Path, folder: Path) -> None:
    """Write the preprocessing that was trained with, in the format that transformers reads."""
    own = {} if is_timm_config(read_json(source / CONFIG)) else _settings(source)
    write_json(folder / PREPROCESSOR, processing.as_settings(own))


def size_arguments(module: nn.Module, side: int) -> dict[str, bool]:
    """What the model is called with beside images of `side` pixels. Position embeddings of a model that was pretrained
    at another size are interpolated, where it offers to do so; CLIP's classifier leaves that to its `vision_model`."""
    own = getattr(getattr(module.config, "vision_config", None) or module.config, "image_size", None)
    parts = [module, *(part for name, part in module.named_children() if name == "vision_model")]
    offers = any("interpolate_pos_encoding" in signature(part.forward).parameters for part in parts)
    return {"interpolate_pos_encoding": True} if offers and own not in (None, side) else {}
