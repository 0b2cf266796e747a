"""The state of torch's own generators, which dropout draws from: taken, set, and kept over what must not disturb it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import RunError


def random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    if states.keys() != {"cpu", device.type}:
        raise RunError(f"the checkpoint was written on another device ({', '.join(states)}, not {device.type}).")
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def seed_process(seed: int, step: int, rank: int) -> None:
    """Let each of several processes draw numbers of its own in a step: a function of these three alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Afterwards the random generators are as if nothing had been drawn inside."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(device, states)
