"""A picture into the pixels that a model reads, by the values of its own preprocessor (config/images.py).

The steps are torchvision's, in the order of transformers' processors, and stop before normalisation: pixels stay whole
numbers from 0 to 255, a quarter of their size as floats, and are normalised on the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.config.images import ImageProcessing
from rankwise.errors import DataError
from rankwise.system.extras import need_extra


def need_vision(what: str) -> None:
    """DataError where the optional libraries for images are missing."""
    for module in ("PIL", "torchvision"):
        need_extra(module, what, "vision", DataError)


def pixels_of(picture: Any, processing: ImageProcessing) -> np.ndarray:
    """(S, S, 3) uint8 of a picture in RGB."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    pixels = transforms.pil_to_tensor(picture)
    sides = [processing.resize] if isinstance(processing.resize, int) else list(processing.resize)
    mode = InterpolationMode(processing.interpolation)
    pixels = transforms.resize(pixels, sides, interpolation=mode, antialias=True)
    top, left = ((side - processing.size) // 2 for side in pixels.shape[1:])
    pixels = pixels[:, top : top + processing.size, left : left + processing.size]
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def normalised(pixels: Tensor, processing: ImageProcessing, dtype: torch.dtype) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) as the model expects them, computed in float32."""
    mean, std = (pixels.new_tensor(values, dtype=torch.float32) for values in (processing.mean, processing.std))
    scaled = pixels.float() * (processing.scale / std) - mean / std
    return scaled.permute(0, 3, 1, 2).contiguous().to(dtype)
