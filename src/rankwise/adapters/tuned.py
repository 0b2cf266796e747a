"""What training, asking and measuring need to know of a model that was tuned, however that was done.

`AdapterSet` is one: adapters over weights that stay. `WholeModel` is the other: weights that learn.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn


class Tuned(Protocol):
    """One model with two sides: as it was tuned, and inside `disabled` the base it began with."""

    model: nn.Module
    kind: str
    """What its parts are, for a sentence."""

    @property
    def parts(self) -> list[str]:
        """The paths of what learns."""
        ...

    @property
    def added(self) -> int:
        """How many parameters the base does not have."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Those that learn."""
        ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The same by their names in the model."""
        ...

    def train(self, learning: bool = True) -> None:
        """Turn on or off what is done while learning alone. The model's own dropout stays off."""
        ...

    def settle(self) -> None:
        """After the last step: nothing of how it was trained is left in it."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """The base inside, bit for bit; afterwards what was there before, nested or not."""
        ...

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        """Inside, the base is changed `strength` times as much: by 0 nothing, by 1 what it is anyway."""
        ...
