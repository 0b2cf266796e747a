"""Augmentation is a function of the seed and of the position in the training, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankwise.config.images import ImagesConfig
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.images.processor import augmentation
from rankwise.rows.text.tokenize import Tokens

HOW = ("flip", "crop", "trivial")


def row(seed: int = 0) -> Tokens:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Tokens([0], (False,), target=0.0, image=pixels)


def varied(how: str, seed: int, position: int) -> np.ndarray:
    vary = augmentation(ImagesConfig.model_validate({"augmentation": how}), seed)
    assert vary is not None
    image = vary(row(), position).image
    assert image is not None
    return image


@pytest.mark.parametrize("how", HOW)
def test_the_same_seed_and_position_give_the_same_pixels(how: str) -> None:
    before = torch.random.get_rng_state()
    first = [varied(how, 3, position) for position in range(20)]
    torch.manual_seed(99)
    again = [varied(how, 3, position) for position in reversed(range(20))][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    torch.random.set_rng_state(before)


@pytest.mark.parametrize("how", HOW)
def test_other_seeds_and_positions_give_other_pixels(how: str) -> None:
    images = {varied(how, seed, position).tobytes() for seed in range(2) for position in range(16)}
    assert len(images) >= 2 if how == "flip" else len(images) > 16


@pytest.mark.parametrize("how", HOW)
def test_the_random_numbers_of_the_process_and_the_row_stay_as_they_were(how: str) -> None:
    before, pixels = torch.random.get_rng_state(), row().image
    varied(how, 0, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.asarray(row().image), np.asarray(pixels))


@pytest.mark.parametrize("how", HOW)
def test_shape_and_type_stay(how: str) -> None:
    image = varied(how, 0, 0)
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8


def test_flipping_mirrors_about_half_of_the_images() -> None:
    pixels = np.asarray(row().image)
    flips = [np.array_equal(varied("flip", 0, position), pixels[:, ::-1]) for position in range(200)]
    assert 70 < sum(flips) < 130


def test_without_augmentation_there_is_nothing_to_do() -> None:
    assert augmentation(ImagesConfig(), 0) is None


def test_each_occurrence_of_a_row_in_a_training_has_its_own_position() -> None:
    positions: list[int] = []

    def vary(one: Tokens, position: int) -> Tokens:
        positions.append(position)
        return one

    batches = Batches([row(seed) for seed in range(5)], 2, 100, 0, lambda rows, tokens: [], vary)
    for step in range(6):
        batches.at(step)
    assert positions == list(range(12))
