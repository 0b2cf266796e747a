"""The documents of a micro-batch one behind the other in a single row, with no padding at all.

For a forward pass that keeps them apart by their lengths. Comes in where portion of batches.py would, as packing does;
since the loss of a step is a sum over all its documents, it changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rankwise.data.batches import Batch, input_length, questions
from rankwise.text.tokenize import Tokens


def flat(documents: Sequence[Tokens], max_batch_tokens: int) -> list[Batch]:
    """Micro-batches of at most so many tokens, longest documents first; one that has more is alone."""
    micro_batches: list[list[Tokens]] = []
    room = 0
    for document in sorted((one for one in documents if input_length(one)), key=input_length, reverse=True):
        if not micro_batches or room < input_length(document):
            micro_batches.append([])
            room = max_batch_tokens
        micro_batches[-1].append(document)
        room -= input_length(document)
    return [_string(part) for part in micro_batches]


def _string(documents: Sequence[Tokens]) -> Batch:
    lengths = tuple(input_length(document) for document in documents)
    inputs, targets = (np.concatenate(parts)[None] for parts in zip(*map(questions, documents), strict=True))
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    return Batch.of_tokens(
        torch.from_numpy(inputs), torch.from_numpy(targets), sum(lengths), torch.from_numpy(positions), lengths
    )
