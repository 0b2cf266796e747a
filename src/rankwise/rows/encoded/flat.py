"""Put the sequences of a micro-batch one after another into a single row, without padding.

The fused backend keeps them apart by their lengths. The loss of a step is the sum over all its sequences, so this
changes only the speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rankwise.rows.encoded.batches import IGNORED, Batch, input_length, questions
from rankwise.rows.text.tokenize import Tokens


def flat(sequences: Sequence[Tokens], max_batch_tokens: int) -> list[Batch]:
    """Micro-batches of at most `max_batch_tokens` tokens, longest sequences first. A longer sequence is alone."""
    micro_batches: list[list[Tokens]] = []
    room = 0
    for sequence in sorted((one for one in sequences if input_length(one)), key=input_length, reverse=True):
        if not micro_batches or room < input_length(sequence):
            micro_batches.append([])
            room = max_batch_tokens
        micro_batches[-1].append(sequence)
        room -= input_length(sequence)
    return [string(part) for part in micro_batches]


def string(sequences: Sequence[Tokens]) -> Batch:
    lengths = tuple(input_length(sequence) for sequence in sequences)
    inputs, targets = (np.concatenate(parts)[None] for parts in zip(*map(questions, sequences), strict=True))
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    return Batch.of_tokens(
        torch.from_numpy(inputs), torch.from_numpy(targets), sum(lengths), torch.from_numpy(positions), lengths
    )


def joined(first: Batch, second: Batch) -> Batch:
    """Two batches in a single row, with the predictions of the first alone."""
    assert first.lengths is not None and second.lengths is not None, "flat batches have lengths"
    inputs = {name: torch.cat([first.inputs[name], second.inputs[name]], 1) for name in first.inputs}
    targets = torch.cat([first.targets, torch.full_like(second.targets, IGNORED)], 1)
    return Batch(inputs, targets, first.count, first.tokens + second.tokens, first.lengths + second.lengths)
