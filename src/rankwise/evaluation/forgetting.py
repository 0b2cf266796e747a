"""Forgetting: how far a tuned model moves from its base on text that it was not trained on.

    KL   = sum over the vocabulary of p (log p - log q),   p the base's distribution, q the tuned model's
    dNLL = log p(next token) - log q(next token)

in nats, averaged over all positions of all blocks. KL counts every change of the model's predictions; dNLL counts only
lost likelihood of the text's own tokens, and a change of domain can even lower it. Logarithms are computed in float32,
whatever the dtype of the logits. A model compared with itself has a KL of exactly 0. In bfloat16, rounding adds to the
KL: 0.001 to 0.002 nats on the starter model. Intervals are over blocks, since positions of one block are not
independent. intervals.py decides how many blocks are needed.

Values are only comparable for equal tokens and the same base.

Gain and forgetting are also functions of adapter strength. At strength s the weights are W + s (W' - W): the base at 0,
the trained model at 1, and extrapolated beyond. Each model is measured on its task, in nats per loss token, and on text
that it was not trained on. The recommended strength is the smallest measured one, up to 1, that keeps 95 % of the
largest gain:

    loss(0) - loss(s)  >=  0.95 max over t <= 1 of (loss(0) - loss(t))

If the largest gain is not significant (intervals.py), the recommendation is 1, or 0 if the trained model is
significantly worse than the base, with the reason. Nothing is interpolated, since that would recommend a strength that
was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.errors import EvaluationError
from rankwise.evaluation.intervals import Looks, difference, measured
from rankwise.evaluation.metrics import METRICS
from rankwise.evaluation.subject import BaseAndTuned, Forward
from rankwise.evaluation.text import Text, refuse_trained_on, text_for
from rankwise.methods.artifact import Artifact
from rankwise.runs.evaluations import Forgetting, OfBlocks, StrengthCurve, StrengthPoint
from rankwise.runs.manifest import now
from rankwise.runs.measured import Difference, Measurement
from rankwise.runs.records import Callback, ProgressUpdate, WarningMessage, silent

ROWS = 64
"""Positions whose logarithms are in memory at a time."""


@dataclass(frozen=True)
class Compared:
    """Sums over the positions of one block; `change` is that of the negative log-likelihood."""

    kl: float
    change: float
    agreed: int
    positions: int


def text_elsewhere(
    artifact: Artifact | None, model: LoadedModel, source: str | None, blocks: int, callback: Callback
) -> Text:
    """The text on which the forgetting of a result is measured (`text_for`). DataError where the run was trained on it,
    or held to its base on it; a warning where the usual text is like what it was held to."""
    text = text_for(model, source, blocks=blocks)
    if artifact is None or artifact.data_report is None:
        return text
    refuse_trained_on(text, artifact.data_report, artifact.anchor)
    anchor = None if artifact.run is None else artifact.run.experiment.training.anchor
    if source is None and anchor is not None and anchor.code:
        callback(WarningMessage(
            "the run was held to its base on code of Python's standard library, and forgetting is measured on Python's "
            "documentation, which is like it. Give another text (--text) to see what is forgotten elsewhere"
        ))  # fmt: skip
    return text


def forgetting(models: BaseAndTuned, text: Text, callback: Callback = silent, looks: Looks | None = None) -> Forgetting:
    """Measure forgetting on all blocks of the text or, with `looks`, on as many as are needed."""
    results = _needed(models, text, callback, looks)
    numbers, blocks, available = sorted(results), _in_order(results), len(text.blocks)
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


def _needed(models: BaseAndTuned, text: Text, callback: Callback, looks: Looks | None) -> dict[int, Compared]:
    """Compare the models block by block; results by block number."""
    available = len(text.blocks)
    order = list(range(available)) if looks is None else looks.order(available)
    results: dict[int, Compared] = {}
    for size in [available] if looks is None else looks.sizes(available):
        part = order[len(results) : size]
        cut = replace(text, blocks=text.blocks[part])
        (blocks,) = compared(models.base, [models.tuned], cut, callback, Done(len(results), size))
        results |= zip(part, blocks, strict=True)
        if looks is not None and looks.enough(_both(_in_order(results), looks, available)[0]):
            break
    return results


def _in_order(results: Mapping[int, Compared]) -> list[Compared]:
    return [results[number] for number in sorted(results)]


def _both(blocks: Sequence[Compared], looks: Looks | None, available: int) -> tuple[Measurement, Measurement]:
    """Return KL and dNLL with their intervals."""
    if looks is None:
        return kl_of(blocks), change_of(blocks)
    kl, change = (
        looks.interval([nats / block.positions for nats, block in zip(sums, blocks, strict=True)], available)
        for sums in ([block.kl for block in blocks], [block.change for block in blocks])
    )
    return kl.model_copy(update={"low": min(kl.value, max(0.0, kl.low))}), change  # KL is never negative


def kl_of(blocks: Sequence[Compared]) -> Measurement:
    return _mean([[block.kl, float(block.positions)] for block in blocks])


def change_of(blocks: Sequence[Compared]) -> Measurement:
    return _mean([[block.change, float(block.positions)] for block in blocks])


def _mean(rows: list[list[float]]) -> Measurement:
    return measured(METRICS["loss"], rows)


@dataclass(frozen=True)
class Done:
    """Blocks measured in earlier rounds, and their total after this one."""

    before: int
    total: int


def compared(
    base: Forward, tuned: Sequence[Forward], text: Text, callback: Callback = silent, progress: Done | None = None
) -> list[list[Compared]]:
    """Compare each tuned model with the base, block by block, so that the base runs only once per block."""
    results: list[list[Compared]] = [[] for _ in tuned]
    steps, total = 0, len(text.blocks) * (1 + len(tuned))
    progress = progress or Done(0, len(text.blocks))
    for block in text.blocks:
        inputs, targets = block[:-1], block[1:]
        expected = base(inputs)
        steps += 1
        for forward, blocks in zip(tuned, results, strict=True):
            blocks.append(_compared(expected, forward(inputs), targets))
            steps += 1
            done = progress.before + steps / total * len(text.blocks)
            callback(ProgressUpdate("Measuring forgetting", done, progress.total, "blocks of text"))
    return results


def _compared(base: Tensor, tuned: Tensor, targets: Tensor) -> Compared:
    """Compare the logits (T, V) of both models on one block."""
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
        raise EvaluationError(
            "logits are not finite: the weights of one of the two models are damaged, or it overflows on this text."
        )
    return Compared(kl, change, agreed, len(targets))


def _total(values: Tensor) -> float:
    return float(values.cpu().double().sum())


STRENGTHS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5)
SHARE_OF_GAIN = 0.95

Scaled = Callable[[float], AbstractContextManager[None]]
"""Maps a strength to a context in which the model has it."""
TaskLoss = Callable[[], Sequence[Sequence[float]]]
"""Returns [nats, tokens] of each item for the current state of the model."""


def strength_curve(
    models: BaseAndTuned, scaled: Scaled, task_loss: TaskLoss, text: Text, *, task: str,
    strengths: Sequence[float] = STRENGTHS, callback: Callback = silent,
) -> StrengthCurve:  # fmt: skip
    """Measure the curve, always including strengths 0 and 1. `task` names what the losses belong to. Strength 0 is
    measured like any other, so a KL of 0 there is a result and not an assumption."""
    points_at = with_ends(strengths)
    losses = []
    for strength in points_at:
        with scaled(strength):
            losses.append(task_loss())
    tuned = [_at(models.tuned, scaled, strength) for strength in points_at]
    points = [
        StrengthPoint(
            strength=strength, loss=measured(METRICS["loss"], rows), kl=kl_of(blocks),
            delta_nll=change_of(blocks).value,
        )
        for strength, rows, blocks in zip(points_at, losses, compared(models.base, tuned, text, callback), strict=True)
    ]  # fmt: skip
    instead = untold(points, losses)
    return StrengthCurve(
        task=task, n=len(losses[0]), text=text.about, sha256=text.sha256, points=points,
        recommended=instead[0] if instead else recommended(points), why=instead[1] if instead else None, created=now(),
    )  # fmt: skip


def with_ends(strengths: Sequence[float]) -> list[float]:
    """Sort the strengths and add 0 and 1."""
    return sorted({0.0, 1.0, *strengths})


def _at(forward: Forward, scaled: Scaled, strength: float) -> Forward:
    def logits(ids: Tensor) -> Tensor:
        with scaled(strength):
            return forward(ids)

    return logits


def untold(points: Sequence[StrengthPoint], losses: Sequence[Sequence[Sequence[float]]]) -> tuple[float, str] | None:
    """Recommend a strength, with the reason, if no gain is significant. `losses` are the items' losses at each point,
    the base's first."""
    changes = {
        point.strength: difference(METRICS["loss"], losses[0], own)
        for point, own in zip(points, losses, strict=True) if 0 < point.strength <= 1
    }  # fmt: skip
    best = min(changes, key=lambda strength: changes[strength].b)
    if changes[best].verdict == "better":
        return None
    if changes[1.0].verdict == "worse":
        return 0.0, (
            f"which is the base model alone: at strength 1 the loss is significantly worse ({_change(changes[1.0])}), "
            "and "
            "at no strength up to 1 is it significantly better"
        )
    return 1.0, (
        f"no strength up to 1 lowers the loss significantly (at {best:g} it changes by {_change(changes[best])}), so "
        "1 is "
        "as good as any other"
    )


def _change(change: Difference) -> str:
    return f"{change.difference:+.3g}, {change.low:+.3g} to {change.high:+.3g}, n = {change.n:,}"


def recommended(points: Sequence[StrengthPoint]) -> float:
    """Return the recommended strength, or 1 if no strength up to 1 gains anything. The first point has strength 0."""
    gains = {point.strength: points[0].loss.value - point.loss.value for point in points if point.strength <= 1}
    largest = max(gains.values())
    return min(strength for strength, gain in gains.items() if gain >= SHARE_OF_GAIN * largest) if largest > 0 else 1.0
