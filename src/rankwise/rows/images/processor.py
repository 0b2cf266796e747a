"""A picture into the pixels that a model reads, by the values of its own preprocessor (config/images.py).

The steps are torchvision's, in the order of transformers' processors, and stop before normalisation: pixels stay whole
numbers from 0 to 255, a quarter of their size as floats, and are normalised on the device.

Training images are varied each time they are seen:

    what becomes of a row = f(seed, position),   position = step * rows of a step + place in the step

So a run that is resumed sees the same pixels, and how a step is cut into batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.config.images import ImageProcessing, ImagesConfig
from rankwise.errors import DataError
from rankwise.rows.text.tokenize import Tokens
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


SMALLEST_AREA = 0.5
Augment = Callable[[Tokens, int], Tokens]
"""A row, and its position in the training, to the row as it is seen there."""


def augmentation(config: ImagesConfig, seed: int) -> Augment | None:
    """None where images stay as they are."""
    if config.augmentation == "none":
        return None

    def augmented(row: Tokens, position: int) -> Tokens:
        assert row.image is not None, "only images are varied"
        pixels = torch.from_numpy(np.array(row.image)).permute(2, 0, 1)
        with _drawing([seed, position]):
            varied = _transform(config.augmentation, pixels.shape[-1])(pixels)
        return replace(row, image=np.ascontiguousarray(varied.permute(1, 2, 0).numpy()))

    return augmented


@contextmanager
def _drawing(seed: Sequence[int]) -> Iterator[None]:
    """Draw by a seed, without a trace in the random numbers of the process. The library draws on the processor."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        generator.set_state(before)


@cache
def _transform(name: str, size: int) -> Any:
    from torchvision.transforms import v2

    steps: list[Any] = [v2.TrivialAugmentWide()] if name == "trivial" else []
    if name in ("crop", "trivial"):
        steps.append(v2.RandomResizedCrop([size, size], scale=(SMALLEST_AREA, 1.0), antialias=True))
    return v2.Compose([*steps, v2.RandomHorizontalFlip()])
