"""Several documents to a row, in place of padding. Comes in where portion of batches.py would: see Batches.arrange.

The documents of a step are laid into rows as wide as its longest, first-fit decreasing: each, longest first, into
the first row with room for it. Positions count anew from 0 in each document, which is how the model is told the
borders; forward/reference.py proves that it heeds them. What is left of a row is padding, a document of its own that
has no loss. The step's loss is a sum over all its loss tokens, so packing changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rankwise.data.batches import IGNORED, ROUND_TO, Batch, collate, input_length, padded_length, questions, rounded
from rankwise.text.tokenize import Tokens

Row = list[Tokens]


def pack(documents: Sequence[Tokens], max_batch_tokens: int) -> list[Batch]:
    """Micro-batches of at most so many padded tokens, widest first; a document that has more is alone in its own."""
    micro_batches: list[list[Row]] = []
    for row in sorted(_rows(documents, max_batch_tokens), key=_used, reverse=True):
        if not micro_batches or _width(micro_batches[-1]) * (len(micro_batches[-1]) + 1) > max_batch_tokens:
            micro_batches.append([])
        micro_batches[-1].append(row)
    return [lay(rows) for rows in micro_batches]


def _rows(documents: Sequence[Tokens], max_batch_tokens: int) -> list[Row]:
    """A document of one token asks nothing and takes no place."""
    ordered = sorted((document for document in documents if input_length(document)), key=input_length, reverse=True)
    capacity = min(padded_length(ordered[0]) if ordered else 0, max_batch_tokens // ROUND_TO * ROUND_TO)
    rows: list[Row] = []
    room: list[int] = []
    for document in ordered:
        place = next((place for place, left in enumerate(room) if left >= input_length(document)), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(capacity)
        rows[place].append(document)
        room[place] -= input_length(document)
    return rows


def lay(rows: Sequence[Row]) -> Batch:
    """Without positions where no row has a border: attention that needs no mask is faster."""
    if all(len(row) == 1 for row in rows):
        return collate([document for row in rows for document in row])
    inputs = np.zeros((len(rows), _width(rows)), dtype=np.int64)
    targets = np.full(inputs.shape, IGNORED)
    positions = np.empty_like(inputs)
    for index, row in enumerate(rows):
        start = 0
        for document in row:
            end = start + input_length(document)
            inputs[index, start:end], targets[index, start:end] = questions(document)
            positions[index, start:end] = np.arange(end - start)
            start = end
        positions[index, start:] = np.arange(inputs.shape[1] - start)
    tokens = sum(_used(row) for row in rows)
    return Batch.of_tokens(torch.from_numpy(inputs), torch.from_numpy(targets), tokens, torch.from_numpy(positions))


def _used(row: Row) -> int:
    return sum(input_length(document) for document in row)


def _width(rows: Sequence[Row]) -> int:
    return rounded(max(_used(row) for row in rows))
