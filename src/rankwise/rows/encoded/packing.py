"""Pack several sequences into one row instead of padding each of them.

A row is as wide as the longest sequence of the step. Sequences are packed first-fit decreasing: from the longest to the
shortest, each goes into the first row that has room for it. Positions start at 0 in each sequence; that tells the model
where a sequence begins, and forward/reference.py checks that the model keeps the sequences apart. The rest of a row is
padding without loss. The loss of a step is the sum over all its loss tokens, so packing changes only the speed.
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
