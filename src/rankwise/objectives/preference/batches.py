"""Pairs of answers into tensors: padded, or one behind the other in a single row.

Both conversations of a pair are always in the same batch, because its loss compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rankwise.rows.encoded.batches import IGNORED, Batch, Pairs, collate, input_length, padded_length, questions
from rankwise.rows.encoded.packing import string
from rankwise.rows.text.tokenize import Tokens, sides_of


@dataclass(frozen=True)
class _Pair:
    position: int
    """Among the rows of the step."""
    sides: tuple[Tokens, Tokens]
    answers: tuple[np.ndarray, np.ndarray]
    """For each target of the chosen and of the rejected side, whether it belongs to the answer."""
    reference: np.ndarray

    @property
    def used(self) -> int:
        return sum(map(input_length, self.sides))

    @property
    def width(self) -> int:
        """Padded tokens of its two rows, as the widest pair of a batch."""
        return 2 * max(map(padded_length, self.sides))

    @property
    def chosen_targets(self) -> int:
        return len(self.answers[0])


def padded_pairs(rows: Sequence[Tokens], max_tokens: int, *, prompts: bool = False) -> list[Batch]:
    """Batches of at most so many padded tokens, the widest pairs first; a wider pair is alone. With `prompts` the
    tokens of a chosen conversation's prompt are targets too."""
    pairs = _pairs(rows, prompts=prompts)
    parts = _grouped(pairs, lambda pair: pair.width, lambda part, pair: part[0].width * (len(part) + 1) <= max_tokens)
    return _batches(parts, collate)


def flat_pairs(rows: Sequence[Tokens], max_tokens: int, *, prompts: bool = False) -> list[Batch]:
    """Batches of pairs without padding: the sequences of each batch lie one behind the other in a single row."""
    pairs = _pairs(rows, prompts=prompts)

    def fits(part: Sequence[_Pair], pair: _Pair) -> bool:
        return sum(one.used for one in part) + pair.used <= max_tokens

    return _batches(_grouped(pairs, lambda pair: pair.used, fits), string)


def _pairs(rows: Sequence[Tokens], *, prompts: bool) -> list[_Pair]:
    return [_pair(position, row, prompts=prompts) for position, row in enumerate(rows)]


def _pair(position: int, row: Tokens, *, prompts: bool) -> _Pair:
    chosen, rejected = sides_of(row)
    answers = [np.asarray(side.loss_mask, dtype=bool) for side in (chosen, rejected)]
    if prompts:
        chosen = replace(chosen, loss_mask=np.ones(len(chosen.ids), dtype=bool))
    of_targets = [
        mask[1:][questions(side)[1] != IGNORED] for mask, side in zip(answers, (chosen, rejected), strict=True)
    ]
    reference = np.zeros(2) if row.reference is None else np.asarray(row.reference, np.float64)
    return _Pair(position, (chosen, rejected), (of_targets[0], of_targets[1]), reference)


def _grouped(
    pairs: Sequence[_Pair], size: Callable[[_Pair], int], fits: Callable[[Sequence[_Pair], _Pair], bool]
) -> list[list[_Pair]]:
    """Largest first, so that what is too large for memory fails at once."""
    parts: list[list[_Pair]] = []
    for pair in sorted(pairs, key=size, reverse=True):
        if not parts or not fits(parts[-1], pair):
            parts.append([])
        parts[-1].append(pair)
    return parts


def _batches(parts: Sequence[Sequence[_Pair]], lay: Callable[[Sequence[Tokens]], Batch]) -> list[Batch]:
    targets = [pair.chosen_targets for part in parts for pair in part]
    mean = sum(targets) / max(1, len(targets))
    return [_batch(part, mean, lay) for part in parts]


def _batch(pairs: Sequence[_Pair], chosen_tokens: float, lay: Callable[[Sequence[Tokens]], Batch]) -> Batch:
    batch = lay([side for pair in pairs for side in pair.sides])
    answers = [one for pair in pairs for one in pair.answers]
    return replace(batch, count=float(len(pairs)), pairs=Pairs(
        counts=tuple(map(len, answers)),
        answers=torch.from_numpy(np.concatenate(answers)),
        reference=torch.from_numpy(np.stack([pair.reference for pair in pairs])),
        chosen_tokens=chosen_tokens,
        positions=tuple(pair.position for pair in pairs),
    ))  # fmt: skip
