"""Stop 8: one optimizer step: micro-batches, loss, backward, clip, update. Next: the next step, or
adapters/formats/peft.py."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch
from torch import Tensor

from rankwise.base.split import gathered
from rankwise.errors import is_out_of_memory
from rankwise.rows.encoded.batches import Batch, chosen_targets, with_chosen_tokens
from rankwise.runs.records import RankRecord, StepRecord
from rankwise.training.losses import Loss
from rankwise.training.state import Diverged, TrainState, first_not_finite
from rankwise.training.world import ONE_PROCESS, World

CLIP_MARGIN = 1e-6
"""What torch adds to the norm before it divides by it."""


@dataclass(frozen=True)
class StepTotals:
    """Totals over all micro-batches of a step, in all processes."""

    count: float
    tokens: int
    images: int
    chosen: float = 0.0
    """Targets of chosen conversations, where rows are pairs."""
    checkpoint_due: bool = False
    """After the step, as the first process says."""

    @classmethod
    def of(cls, batches: Sequence[Batch], world: World = ONE_PROCESS, checkpoint_due: bool = False) -> StepTotals:
        """StoppedTogether where a process was asked to stop before this step."""
        count, tokens, images = (sum(getattr(one, name) for one in batches) for name in ("count", "tokens", "images"))
        if not world.is_several:
            return cls(count, tokens, images, checkpoint_due=checkpoint_due)
        every = world.gather([count, tokens, images, chosen_targets(batches), world.stop_code, checkpoint_due])
        world.stop_on([row[4] for row in every])
        count, tokens, images, chosen, _, due = map(sum, zip(*every, strict=True))
        return cls(count, round(tokens), round(images), chosen, bool(due))

    def divided(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches of one process, whose losses count what all processes have."""
        return with_chosen_tokens(batches, self.chosen / self.count) if self.chosen else batches


class Anchoring(Protocol):
    """What is learned beside the rows (extras/anchor.py)."""

    @property
    def length(self) -> int:
        """Tokens of its block in each step."""
        ...

    def joins(self, batch: Batch) -> bool: ...

    def backward(self, batch: Batch | None, step: int, count: float) -> tuple[float, float]: ...


def optimizer_step(
    state: TrainState, batches: Sequence[Batch], loss_of: Loss, epoch: float, anchor: Anchoring | None = None,
    world: World = ONE_PROCESS, totals: StepTotals | None = None,
) -> tuple[StepRecord, RankRecord | None]:  # fmt: skip
    """Learn from all micro-batches at once; the loss is the mean over their predictions together. Of several
    processes each has some of the batches, and `totals` are those of all.

    What keeps an adapter's factors apart is no part of that loss: its gradient is added once, before clipping.
    NoRoom where memory runs out before the update.
    """
    began = time.perf_counter()
    totals = totals or StepTotals.of(batches)
    count = totals.count
    loss, divergence, apart = _learn(state, batches, loss_of, count, anchor, has_anchor=world.is_first)
    if world.is_several:
        loss, divergence = world.sums([loss, divergence])
        world.sum_gradients(state.parameters)
        world.sum_tensors(apart)
    state.trainable.add_penalty()
    total = torch.nn.utils.get_total_norm([one.grad for one in state.parameters if one.grad is not None])
    norm = gathered(total).item()
    _check_finite(state, loss, norm)
    torch.nn.utils.clip_grads_with_norm_(state.parameters, state.clip, total)
    rate = state.rate(state.step)
    state.set_rate(rate)
    state.trainable.before_step(min(1.0, state.clip / (norm + CLIP_MARGIN)))
    state.optimizer.step()
    plan = state.trainable.after_step(state.step, state.optimizer)
    state.optimizer.zero_grad(set_to_none=False)  # gradients may be views into one buffer
    state.step += 1
    record = StepRecord(
        step=state.step,
        steps=state.steps,
        epoch=round(epoch, 4),
        loss=loss,
        learning_rate=rate,
        gradient_norm=norm,
        tokens=totals.tokens,
        loss_tokens=max(1, round(count)),
        seconds=time.perf_counter() - began,
        resident_bytes=psutil.Process().memory_info().rss,
        images=totals.images,
        divergence=None if anchor is None else divergence,
    )
    return record, plan


class NoRoom(MemoryError):
    """Memory ran out before anything was updated; gradients are half done."""


def _learn(
    state: TrainState, batches: Sequence[Batch], loss_of: Loss, count: float, anchor: Anchoring | None, *,
    has_anchor: bool,
) -> tuple[float, float, Sequence[Tensor]]:  # fmt: skip
    """The loss of the rows, the divergence from the base, and what a method has set apart. The anchor comes first: a
    method may set what it has learned from it apart, before the rows' gradients are added. Of several processes the
    first has the anchor."""
    loss, divergence, apart, alone = 0.0, 0.0, list[Tensor](), list(batches)
    try:
        if anchor is not None and has_anchor:
            shared = alone.pop().to(state.device) if alone and anchor.joins(alone[-1]) else None
            loss, divergence = anchor.backward(shared, state.step, count)
        if anchor is not None:
            apart = state.trainable.set_apart()
        return loss + sum(_backward(batch.to(state.device), loss_of, count) for batch in alone), divergence, apart
    except Exception as error:
        if is_out_of_memory(error):
            raise NoRoom(str(error)) from None
        raise


def _backward(batch: Batch, loss_of: Loss, count: float) -> float:
    """Each backward adds a sum, so it is divided by the whole step's count here."""
    total = loss_of(batch)
    (total / count).backward()
    return total.item() / count


def _check_finite(state: TrainState, loss: float, norm: float) -> None:
    """Diverged if the loss or a gradient is not finite, before the update, so that what learns keeps its last good
    values."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"step {state.step + 1} of {state.steps}: the loss is {loss} and the gradient norm is {norm}"
            f"{first_not_finite(state)}, so training stopped before the update. Try a learning rate several times "
            "lower, or --set model.dtype=float32.",
            begun=state.step + 1,
        )
