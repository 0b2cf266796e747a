"""Several sequences in one row instead of a padded row for each. The loss of a step is the sum over all loss tokens,
so that this changes only the speed.

pack     a row is as wide as the longest sequence of the step. From the longest to the shortest, each sequence goes into
         the first row that has room for it. Positions start at 0 in each sequence; that tells the model where a
         sequence begins, and forward/reference.py checks that the model keeps the sequences apart. The rest of a row
         is padding without loss
flat     the sequences of a micro-batch one after another in a single row, which the fused backend keeps apart by their
         lengths
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rankwise.rows.encoded.batches import (
    IGNORED,
    ROUND_TO,
    Batch,
    collate,
    input_length,
    padded_length,
    questions,
    rounded,
)
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


Row = list[Tokens]


def pack(sequences: Sequence[Tokens], max_batch_tokens: int) -> list[Batch]:
    """Micro-batches of at most `max_batch_tokens` padded tokens, widest first. A longer sequence is alone."""
    micro_batches: list[list[Row]] = []
    for row in sorted(_rows(sequences, max_batch_tokens), key=_used, reverse=True):
        if not micro_batches or _width(micro_batches[-1]) * (len(micro_batches[-1]) + 1) > max_batch_tokens:
            micro_batches.append([])
        micro_batches[-1].append(row)
    return [lay(rows) for rows in micro_batches]


def _rows(sequences: Sequence[Tokens], max_batch_tokens: int) -> list[Row]:
    """Sequences of one token are left out: they have no token to predict."""
    ordered = sorted((sequence for sequence in sequences if input_length(sequence)), key=input_length, reverse=True)
    capacity = min(padded_length(ordered[0]) if ordered else 0, max_batch_tokens // ROUND_TO * ROUND_TO)
    rows: list[Row] = []
    room: list[int] = []
    for sequence in ordered:
        place = next((place for place, left in enumerate(room) if left >= input_length(sequence)), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(capacity)
        rows[place].append(sequence)
        room[place] -= input_length(sequence)
    return rows


def lay(rows: Sequence[Row]) -> Batch:
    """One batch of these rows. If each has one sequence, positions are left out: attention without a mask is faster."""
    if all(len(row) == 1 for row in rows):
        return collate([sequence for row in rows for sequence in row])
    inputs = np.zeros((len(rows), _width(rows)), dtype=np.int64)
    targets = np.full(inputs.shape, IGNORED)
    positions = np.empty_like(inputs)
    for index, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + input_length(sequence)
            inputs[index, start:end], targets[index, start:end] = questions(sequence)
            positions[index, start:end] = np.arange(end - start)
            start = end
        positions[index, start:] = np.arange(inputs.shape[1] - start)
    tokens = sum(_used(row) for row in rows)
    return Batch.of_tokens(torch.from_numpy(inputs), torch.from_numpy(targets), tokens, torch.from_numpy(positions))


def _used(row: Row) -> int:
    return sum(input_length(sequence) for sequence in row)


def _width(rows: Sequence[Row]) -> int:
    return rounded(max(_used(row) for row in rows))
