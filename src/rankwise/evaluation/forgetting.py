"""What a tuned model does to text that is not among its data, against its base.

    KL   = sum over the vocabulary of p (log p - log q),   p the base's distribution, q the tuned model's
    dNLL = log p(next token) - log q(next token)

in nats, at every position of every block, and their means over all positions. KL counts any change of what the model
would say, dNLL one that costs the text's own tokens likelihood; a change of domain can even lower it. Logarithms are in
float32, whatever format the logits come in. A model beside itself has a KL of exactly 0; any other, where it is held in
bfloat16, has the rounding of that in it: on the starter 0.001 to 0.002 nats too much. Intervals are over blocks, since
positions of one block are no independent draws. How many blocks it takes is decided in looks.py.

Only equal tokens can be compared, and no KL with that of another base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankwise.errors import EvaluationError
from rankwise.evaluation.base_and_tuned import Forward, Sides
from rankwise.evaluation.intervals import measured
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.sequential import Looks
from rankwise.evaluation.text import Text
from rankwise.runs.evaluations import Forgetting, Measured, OfBlocks
from rankwise.runs.records import Callback, ProgressUpdate, silent

ROWS = 64
"""Positions whose logarithms are there at a time."""


@dataclass(frozen=True)
class Compared:
    """Sums over the positions of one block."""

    kl: float
    change: float
    """Of the negative log-likelihood."""
    agreed: int
    positions: int


def forgetting(sides: Sides, text: Text, callback: Callback = silent, looks: Looks | None = None) -> Forgetting:
    """On all blocks of the text or, with `looks`, on as many as these need."""
    found = _needed(sides, text, callback, looks)
    numbers, blocks, available = sorted(found), _in_order(found), len(text.blocks)
    kl, change = _both(blocks, looks, available)
    positions = sum(block.positions for block in blocks)
    whole = len(blocks) == available
    return Forgetting(
        kl=kl.value, low=kl.low, high=kl.high,
        delta_nll=change.value, delta_nll_low=change.low, delta_nll_high=change.high,
        agreement=sum(block.agreed for block in blocks) / positions,
        text=text.about, sha256=text.sha256, blocks=len(blocks), positions=positions,
        available=None if whole else available,
        sums=OfBlocks(
            kl=[(one.kl, one.positions) for one in blocks],
            delta_nll=[(one.change, one.positions) for one in blocks],
            numbers=None if whole else numbers,
        ),
    )  # fmt: skip


def _needed(sides: Sides, text: Text, callback: Callback, looks: Looks | None) -> dict[int, Compared]:
    """By the number of the block in the text."""
    available = len(text.blocks)
    order = list(range(available)) if looks is None else looks.order(available)
    found: dict[int, Compared] = {}
    for size in [available] if looks is None else looks.sizes(available):
        part = order[len(found) : size]
        cut = replace(text, blocks=text.blocks[part])
        (blocks,) = compared(sides.base, [sides.tuned], cut, callback, Done(len(found), size))
        found |= zip(part, blocks, strict=True)
        if looks is not None and looks.enough(_both(_in_order(found), looks, available)[0]):
            break
    return found


def _in_order(found: Mapping[int, Compared]) -> list[Compared]:
    return [found[number] for number in sorted(found)]


def _both(blocks: Sequence[Compared], looks: Looks | None, available: int) -> tuple[Measured, Measured]:
    """KL and dNLL with their intervals."""
    if looks is None:
        return kl_of(blocks), change_of(blocks)
    kl, change = (
        looks.interval([nats / block.positions for nats, block in zip(sums, blocks, strict=True)], available)
        for sums in ([block.kl for block in blocks], [block.change for block in blocks])
    )
    return kl.model_copy(update={"low": min(kl.value, max(0.0, kl.low))}), change  # no KL is below 0


def kl_of(blocks: Sequence[Compared]) -> Measured:
    return _mean([[block.kl, float(block.positions)] for block in blocks])


def change_of(blocks: Sequence[Compared]) -> Measured:
    return _mean([[block.change, float(block.positions)] for block in blocks])


def _mean(rows: list[list[float]]) -> Measured:
    return measured(METRICS["loss"], rows)


@dataclass(frozen=True)
class Done:
    """Blocks that were measured before these, and those that there will be then."""

    before: int
    total: int


def compared(
    base: Forward, tuned: Sequence[Forward], text: Text, callback: Callback = silent, progress: Done | None = None
) -> list[list[Compared]]:
    """Of each tuned model its blocks. Block by block, so that the base is asked once for all of them."""
    found: list[list[Compared]] = [[] for _ in tuned]
    steps, total = 0, len(text.blocks) * (1 + len(tuned))
    progress = progress or Done(0, len(text.blocks))
    for block in text.blocks:
        inputs, targets = block[:-1], block[1:]
        expected = base(inputs)
        steps += 1
        for forward, blocks in zip(tuned, found, strict=True):
            blocks.append(_compared(expected, forward(inputs), targets))
            steps += 1
            done = progress.before + steps / total * len(text.blocks)
            callback(ProgressUpdate("Measuring what is forgotten", done, progress.total, "blocks of text"))
    return found


def _compared(base: Tensor, tuned: Tensor, targets: Tensor) -> Compared:
    """Logits (T, V) of both."""
    if base.shape != tuned.shape:
        raise EvaluationError(f"one model has logits {tuple(base.shape)} and the other {tuple(tuned.shape)}.")
    exact = torch.promote_types(base.dtype, torch.float32)
    kl = change = 0.0
    agreed = 0
    for first in range(0, len(targets), ROWS):
        rows = slice(first, first + ROWS)
        log_p, log_q = (torch.log_softmax(one[rows], -1, dtype=exact) for one in (base, tuned))
        apart = log_p - log_q
        change += _total(apart.gather(1, targets[rows, None].to(apart.device)))
        kl += _total((log_p.exp_() * apart).sum(-1))
        agreed += int((base[rows].argmax(-1) == tuned[rows].argmax(-1)).sum())
    if not torch.tensor([kl, change]).isfinite().all():
        raise EvaluationError("logits are not finite: one of the two models is damaged, or overflows on this text.")
    return Compared(kl, change, agreed, len(targets))


def _total(values: Tensor) -> float:
    return float(values.cpu().double().sum())
