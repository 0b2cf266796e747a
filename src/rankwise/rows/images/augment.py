"""Training images, varied each time they are seen.

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

from rankwise.config.images import ImagesConfig
from rankwise.rows.text.tokenize import Tokens

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
