"""In which form a run computes its losses: plain, as the model's own code does; fast, by kernels; or compiled, which is
fast with its chains of small operations made into loops by torch's compiler.

A run is begun in one form and keeps it, since results differ in rounding. The model itself is asked first whether a
form agrees with the plain one. Compiling takes seconds and saves a few hundredths of a run: a short one does without.

What a form keeps for the backward pass has to fit into the memory that is there; if it does not, the lowest blocks are
computed twice, or as many of them as was asked for. That changes time and memory and no number, so it is looked at anew
whenever a run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import nn

from rankwise.config.training import TrainingConfig
from rankwise.data.batches import Arrange, Batch, portion
from rankwise.data.flat import flat
from rankwise.data.packing import pack
from rankwise.errors import ConfigError, RunError, is_out_of_memory
from rankwise.forward.activation_memory import Kept, kept_by, kept_by_plain
from rankwise.forward.agreement import Agreement, agreement
from rankwise.forward.checkpointing import blocks_in_order, computed_twice
from rankwise.forward.fused import (
    PROBED,
    FastLoss,
    blocks_of,
    has_weights_that_learn,
    is_fast,
    lowest_that_learns,
    probe,
)
from rankwise.forward.reference import SupervisedLogits, check_packs
from rankwise.kernels.regions import compiled_regions
from rankwise.methods.trainable import Trainable
from rankwise.models.loaded import LoadedModel
from rankwise.runs.manifest import Form
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.system.cache import cache_folder
from rankwise.system.memory import available_memory
from rankwise.training.losses import Loss, summed

NO_COMPILER = "not compiled: torch's compiler, which needs a C++ compiler, does not work here"
ADVICE = "--restart begins it again in another."
LONG = 1200.0
"""Seconds. A thirtieth of it, what compiling saves (lab/LOG.md), is several times what compiling takes."""
BYTES_OF_LEARNING = 12
"""Of each number that learns: a gradient and AdamW's two averages."""
KEPT_SHARE, PREFIX_SHARE = 0.7, 0.15
"""Of free memory: what may be kept for the backward pass, and of what lies below the lowest block that learns."""


@dataclass(frozen=True)
class Forms:
    """Of a model and what learns of it, for documents of at most `longest` tokens and at most `largest` tokens at once.
    The blocks below `lowest` do not learn; `twice` is how many are to be computed twice."""

    model: LoadedModel
    trainable: Trainable
    longest: int
    largest: int
    lowest: int
    twice: int | Literal["auto"]
    callback: Callback

    def chosen(self, tokens: int) -> Form:
        """For a new run over so many tokens in all."""
        if not is_fast(self.model.module, self.longest):
            kind = WarningMessage if is_fast(self.model.module, 1) else StatusMessage
            self.callback(kind(f"computed in the plain form: {self._why_plain()}"))
            return "plain"
        found = self._agreement()
        if not found.agrees:
            self.callback(WarningMessage(f"computed in the plain form, which takes more time and memory: {found.why}"))
            return "plain"
        form: Form = "compiled" if self._seconds_per_token() * tokens > LONG and self._compiles() else "fast"
        self.callback(
            StatusMessage(f"computed in the {form} form, which agrees with the plain one (--plain): {found.why}")
        )
        return form

    def _why_plain(self) -> str:
        if has_weights_that_learn(self.model.module):
            return "the fast kernels need frozen weights, and here the model's own weights are trained"
        if is_fast(self.model.module, 1):
            return (
                f"the longest row has {self.longest:,} tokens, more than the model's sliding window. With a lower "
                "--max-length the fast form can be used, which takes less time and memory"
            )
        return "there are no fast kernels for this model and device"

    @contextmanager
    def computing(self, form: Form, packing: bool) -> Iterator[tuple[Loss, Arrange]]:
        """How losses are computed, and how documents become rows for it."""
        module = self.model.module
        if form == "plain":
            if packing:
                check_packs(module, self.model.vocabulary)
            loss_of = summed(SupervisedLogits(module))
            with computed_twice(self._fitting_blocks(loss_of)):
                yield loss_of, pack if packing else portion
            return
        if not is_fast(module, self.longest):
            raise RunError(f"the run was begun in the {form} form, which this model does not have here; {ADVICE}")
        with _compiled() if form == "compiled" else nullcontext():
            if form == "compiled":
                self._try_compiled()
            yield self._fitting(), flat

    def _agreement(self) -> Agreement:
        return agreement(self.model.module, self.trainable.parameters(), SupervisedLogits(self.model.module))

    def _seconds_per_token(self) -> float:
        """By a small step, which is slower for each token than a large one; the comparison has made one before."""
        batch = probe(self.model.module, PROBED, torch.Generator())
        with self._learning():
            began = time.perf_counter()
            self._step(batch)
            return (time.perf_counter() - began) / batch.tokens

    def _step(self, batch: Batch) -> None:
        torch.autograd.grad(FastLoss(self.model.module)(batch), self.trainable.parameters(), allow_unused=True)

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """With dropout, if there is one, which no number of the run may depend on."""
        with torch.random.fork_rng(devices=[]):
            self.trainable.train()
            try:
                yield
            finally:
                self.trainable.train(False)

    def _compiles(self) -> bool:
        began = time.perf_counter()
        with _compiled():
            found = self._agreement()
        seconds = time.perf_counter() - began
        why_not = NO_COMPILER if found.failed else f"not compiled: {found.why}"
        self.callback(StatusMessage(f"compiled in {seconds:.0f} s" if found.agrees else why_not))
        return found.agrees

    def _try_compiled(self) -> None:
        """Whatever a compiler that is missing or broken raises is told as that."""
        try:
            with self._learning():
                self._step(probe(self.model.module, PROBED, torch.Generator()))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"the run was begun in the compiled form, and torch's compiler, which needs a C++ compiler, does not "
                f"work here ({type(error).__name__}); {ADVICE}"
            ) from error

    def _fitting(self) -> FastLoss:
        module, free = self.model.module, available_memory()
        twice = self._twice(blocks_of(module) - self.lowest, free, lambda: (kept_by(module, self.lowest), 0.0))
        return FastLoss(module, lowest=self.lowest, recomputed=twice, room=int(free * PREFIX_SHARE))

    def _fitting_blocks(self, loss_of: Loss) -> list[nn.Module]:
        """Of the plain form, in which gradients and the optimizer's averages may be most of what is still to come."""
        module = self.model.module
        blocks = learning(blocks_in_order(module))
        if self.twice != "auto" and self.twice and not blocks:
            raise ConfigError(
                [
                    f"training.activation_checkpointing is {self.twice}, but rankwise knows no blocks of "
                    f"{type(module).__name__} whose activations it could recompute. Leave it out, or lower "
                    "training.max_batch_tokens."
                ]
            )

        def counted() -> tuple[Kept, float]:
            with computed_twice(blocks):
                least = kept_by_plain(module, loss_of).of(self.largest)
            return kept_by_plain(module, loss_of), least

        learned = sum(parameter.numel() for parameter in self.trainable.parameters())
        free = free_on(self.model.precision.device) - BYTES_OF_LEARNING * learned
        return blocks[: self._twice(len(blocks), max(0, free), counted)] if blocks else []

    def _twice(self, blocks: int, free: int, counted: Callable[[], tuple[Kept, float]]) -> int:
        """`counted` tells what all blocks keep, and what is left of it if all are computed twice."""
        if self.twice != "auto":
            return min(self.twice, blocks)
        with self._learning():
            kept, least = counted()
        needed = kept.of(self.largest)
        twice = recomputed(needed, free, blocks, least)
        if twice:
            self.callback(WarningMessage(_told(twice, blocks, self.largest, needed, free)))
        return twice


def lowest_of(model: LoadedModel, spec: TrainingConfig, rows: int, longest: int) -> int:
    """The lowest block that learns, where documents come again; asked before a checkpoint takes ranks away."""
    again = spec.total_steps(rows) * spec.rows_per_step(rows) > rows
    return lowest_that_learns(model.module) if again and is_fast(model.module, longest) else 0


def _told(twice: int, blocks: int, tokens: int, needed: float, free: float) -> str:
    return (
        f"{twice} of {blocks} blocks are computed twice: all would keep {needed / 1e9:.1f} GB for {tokens:,} tokens at "
        f"once, and {free / 1e9:.1f} GB are free. With fewer training.max_batch_tokens they keep less"
    )


def recomputed(needed: float, free: float, blocks: int, least: float = 0.0) -> int:
    """How many blocks must not keep what they need, where all together need so many bytes, and `least` if none does."""
    room = free * KEPT_SHARE
    return min(blocks, ceil((needed - room) / max(1.0, (needed - least) / blocks))) if needed > room else 0


def free_on(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory()


def learning(blocks: list[nn.Module]) -> list[nn.Module]:
    """From the first on in which something learns."""
    first = next((at for at, block in enumerate(blocks) if any(one.requires_grad for one in block.parameters())), 0)
    return blocks[first:]


@contextmanager
def _compiled() -> Iterator[None]:
    with compiled_regions(cache_folder() / "compiled"):
        yield
