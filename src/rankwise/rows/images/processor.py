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


REACH = {"nearest": 0, "bilinear": 1, "bicubic": 2}
"""Pixels on either side that a pixel of an enlarged image is computed from."""


def cropped(images: Tensor, processing: ImageProcessing) -> Tensor:
    """Images (B, 3, H, W) of any size to (B, 3, S, S): the values of `pixels_of`, but for one in a thousand that
    rounding moves by one, by products of matrices, so that a graph of operations in float32 can hold it."""
    long, edge = [torch.arange(side).float()[-1:] + 1 for side in images.shape[2:]], processing.resize
    if isinstance(edge, int):
        new = [torch.floor(edge * side / torch.minimum(*long)) for side in long]
    else:
        new = [torch.full_like(long[0], side) for side in edge]
    narrow = _along(images, *_weights(images.shape[3], long[1], new[1], processing))
    return _along(narrow.transpose(2, 3), *_weights(images.shape[2], long[0], new[0], processing)).transpose(2, 3)


def _along(images: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """The last axis, rounded. Whole numbers of 16 bits are summed in two halves, which float32 holds exactly."""
    high = torch.floor(weights / 256)
    low = torch.floor((images @ (weights - 256 * high).T + unit / 2) / 256)
    return torch.floor((images @ high.T + low) / (unit / 256)).clamp(0, 255)


def _weights(count: int, long: Tensor, new: Tensor, processing: ImageProcessing) -> tuple[Tensor, Tensor]:
    """(S, H): what each of H pixels counts in each of the S pixels that are cut from the middle of `new` ones, in units
    of which the second number makes 1. As torchvision's, it is a power of two that the largest weight decides, which
    may lie at the border."""
    size, reach, pixels = processing.size, REACH[processing.interpolation], torch.arange(count).float()
    cut = torch.arange(size).float() + torch.floor((new - size) / 2)
    places = torch.cat([cut, torch.zeros_like(new), new - 1])[:, None]
    if not reach:
        return 256 * (pixels == torch.floor(places[:size] * (long / new))).float(), torch.full_like(new, 256)
    distance = ((2 * pixels + 1) * new - (2 * places + 1) * long).abs() / (2 * torch.maximum(long, new))
    weights = _kernel(distance, reach)
    weights = weights / weights.sum(1, keepdim=True)
    powers = 2.0 ** torch.arange(1, 23).float()
    unit = 2.0 ** (torch.floor(weights.max() * powers + 0.5) < 2**15).sum().float()
    return torch.sign(weights[:size]) * torch.floor(weights[:size].abs() * unit + 0.5), unit


def _kernel(x: Tensor, reach: int) -> Tensor:
    """A triangle, or Keys' cubic kernel with a = -0.5."""
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    return (1 - x).clamp(min=0) if reach == 1 else torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


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
