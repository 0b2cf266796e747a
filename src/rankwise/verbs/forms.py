"""In which form a run computes its losses: plain, as the model's own code does; fast, by kernels; or compiled, which is
fast with its chains of small operations made into loops by torch's compiler.

A run is begun in one form and keeps it, since results differ in rounding. The model itself is asked first whether a
form agrees with the plain one. Compiling takes seconds and saves a few hundredths of a run: a short one does without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from rankwise.data.batches import Arrange, portion
from rankwise.data.flat import flat
from rankwise.data.packing import pack
from rankwise.errors import RunError
from rankwise.kernels.regions import compiled_regions
from rankwise.models.causal import SupervisedLogits, check_packs
from rankwise.models.fast import PROBED, FastLoss, agrees, is_fast
from rankwise.models.loaded import LoadedModel
from rankwise.run.cache import cache_folder
from rankwise.run.manifest import Form
from rankwise.run.records import Announce, Said
from rankwise.training.losses import Loss, summed

LONG = 1200.0
"""Seconds. A thirtieth of it, about what compiling saves, is several times what compiling takes."""
PASSES = 4
"""In `agrees`: forward and backward in either form, and a forward."""


@dataclass(frozen=True)
class Forms:
    """Of a model with its adapters (`learned`), for documents of at most `longest` tokens."""

    model: LoadedModel
    learned: list[nn.Parameter]
    longest: int

    def chosen(self, tokens: int, announce: Announce) -> Form:
        """For a new run over so many tokens in all."""
        if not is_fast(self.model.module, self.longest):
            return "plain"
        began = time.perf_counter()
        if not self._agrees():
            announce(Said("the fast form does not agree with the plain one on this model, which is used instead"))
            return "plain"
        expected = (time.perf_counter() - began) / PASSES / sum(PROBED) * tokens
        form: Form = "compiled" if expected > LONG and self._compiles(announce) else "fast"
        announce(Said(f"computed in the {form} form, which agrees with the plain one (--plain)"))
        return form

    def _agrees(self) -> bool:
        return agrees(self.model.module, self.learned, SupervisedLogits(self.model.module))

    def _compiles(self, announce: Announce) -> bool:
        began = time.perf_counter()
        with _compiled():
            works = self._agrees()
        seconds = time.perf_counter() - began
        announce(Said(f"compiled in {seconds:.0f} s" if works else "torch's compiler does not work here"))
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
            yield FastLoss(module), flat
            return
        with _compiled():
            if not self._agrees():
                raise RunError(f"{run} was begun in the compiled form, and torch's compiler does not work here.")
            yield FastLoss(module), flat


@contextmanager
def _compiled() -> Iterator[None]:
    with compiled_regions(cache_folder() / "compiled"):
        yield
