"""In which form a run computes its losses: plain, as the model's own code does; fast, by kernels; or compiled, which is
fast with its chains of small operations made into loops by torch's compiler.

A run is begun in one form and keeps it, since results differ in rounding. The model itself is asked first whether a
form agrees with the plain one. Compiling takes seconds and saves a few hundredths of a run: a short one does without.

What a fast form keeps for the backward pass has to fit into the memory that is there; if it does not, the lowest blocks
are computed twice. That changes time and memory and no number, so it is looked at anew whenever a run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from torch import nn

from rankwise.data.batches import Arrange, portion
from rankwise.data.flat import flat
from rankwise.data.packing import pack
from rankwise.errors import RunError
from rankwise.kernels.regions import compiled_regions
from rankwise.models.causal import SupervisedLogits, check_packs
from rankwise.models.fast import PROBED, FastLoss, agrees, blocks_that_learn, is_fast, kept_per_token
from rankwise.models.loaded import LoadedModel
from rankwise.run.cache import cache_folder
from rankwise.run.manifest import Form
from rankwise.run.memory import available_memory
from rankwise.run.records import Announce, Said
from rankwise.training.losses import Loss, summed

LONG = 1200.0
"""Seconds. A thirtieth of it, about what compiling saves, is several times what compiling takes."""
KEPT_SHARE, PREFIX_SHARE = 0.7, 0.15
"""Of free memory: what may be kept for the backward pass, and of what lies below the lowest block that learns."""
PASSES = 4
"""In `agrees`: forward and backward in either form, and a forward."""


@dataclass(frozen=True)
class Forms:
    """Of a model with its adapters (`learned`), for documents of at most `longest` tokens."""

    model: LoadedModel
    learned: list[nn.Parameter]
    longest: int
    micro_batch_tokens: int
    announce: Announce

    def chosen(self, tokens: int) -> Form:
        """For a new run over so many tokens in all."""
        if not is_fast(self.model.module, self.longest):
            return "plain"
        began = time.perf_counter()
        if not self._agrees():
            self.announce(Said("the fast form does not agree with the plain one on this model, which is used instead"))
            return "plain"
        expected = (time.perf_counter() - began) / PASSES / sum(PROBED) * tokens
        form: Form = "compiled" if expected > LONG and self._compiles() else "fast"
        self.announce(Said(f"computed in the {form} form, which agrees with the plain one (--plain)"))
        return form

    def _agrees(self) -> bool:
        return agrees(self.model.module, self.learned, SupervisedLogits(self.model.module))

    def _compiles(self) -> bool:
        began = time.perf_counter()
        with _compiled():
            works = self._agrees()
        seconds = time.perf_counter() - began
        self.announce(Said(f"compiled in {seconds:.0f} s" if works else "torch's compiler does not work here"))
        return works

    @contextmanager
    def computing(self, form: Form, packing: bool, run: str) -> Iterator[tuple[Loss, Arrange]]:
        """How losses are computed, and how documents become rows for it. `run` is who asks."""
        module = self.model.module
        if form == "plain":
            if packing:
                check_packs(module, self.model.vocabulary)
            yield summed(SupervisedLogits(module)), pack if packing else portion
            return
        if not is_fast(module, self.longest):
            raise RunError(f"{run} was begun in the {form} form, which this model does not have here.")
        if form == "fast":
            yield self._fitting(), flat
            return
        with _compiled():
            if not self._agrees():
                raise RunError(f"{run} was begun in the compiled form, and torch's compiler does not work here.")
            yield self._fitting(), flat

    def _fitting(self) -> FastLoss:
        module, free = self.model.module, available_memory()
        tokens, blocks = max(self.micro_batch_tokens, self.longest), blocks_that_learn(module)
        needed = kept_per_token(module) * tokens
        twice = recomputed(needed, free, blocks)
        if twice:
            self.announce(Said(_told(twice, blocks, tokens, needed, free)))
        return FastLoss(module, recomputed=twice, room=int(free * PREFIX_SHARE))


def _told(twice: int, blocks: int, tokens: int, needed: float, free: float) -> str:
    return (
        f"{twice} of {blocks} blocks are computed twice: all would keep {needed / 1e9:.1f} GB for {tokens:,} tokens at "
        f"once, and {free / 1e9:.1f} GB are free. With fewer training.micro_batch_tokens they keep less"
    )


def recomputed(needed: float, free: float, blocks: int) -> int:
    """How many blocks must not keep what they need, where all together need so many bytes."""
    room = free * KEPT_SHARE
    return min(blocks, ceil((needed - room) / (needed / blocks))) if needed > room else 0


@contextmanager
def _compiled() -> Iterator[None]:
    with compiled_regions(cache_folder() / "compiled"):
        yield
