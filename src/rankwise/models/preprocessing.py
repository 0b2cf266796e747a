"""The image preprocessing of a model's folder, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.config.images import ImageProcessing, processing_of, processing_of_timm
from rankwise.errors import ModelError, first_line
from rankwise.models.inspection import read_json
from rankwise.models.timm_models import is_timm_config
from rankwise.system.extras import need_extra
from rankwise.system.files import write_json

PREPROCESSOR, CONFIG = "preprocessor_config.json", "config.json"
PROCESSOR = "processor_config.json"
"""Where newer versions of transformers write the settings of all of a model's processors."""


def processing_in(folder: Path) -> ImageProcessing:
    """ModelError where the folder has none, or one that does more than resize, cut and normalise."""
    config = read_json(folder / CONFIG)
    if is_timm_config(config):
        return processing_of_timm(config["pretrained_cfg"], str(folder / CONFIG))
    return processing_of(_settings(folder), str(folder))


def _settings(folder: Path) -> dict[str, Any]:
    """All settings of the folder's image processor, also those that its file leaves to the processor's class."""
    from transformers import AutoImageProcessor

    if not any((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR)):
        raise ModelError(f"{folder} has no {PREPROCESSOR}, so it is unknown how images become what the model reads.")
    need_extra("torchvision", f"{folder}: a model of images", "vision", ModelError)
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True).to_dict()
    except Exception as error:  # as many kinds as there are processors
        raise ModelError(f"{folder} has no image processor that can be loaded: {first_line(error)}") from None


def save_processing(processing: ImageProcessing, source: Path, folder: Path) -> None:
    """Write the preprocessing that was trained with, in the format that transformers reads."""
    own = {} if is_timm_config(read_json(source / CONFIG)) else _settings(source)
    write_json(folder / PREPROCESSOR, processing.as_settings(own))
