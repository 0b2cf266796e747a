"""The largest micro-batch of a training, by what a row is: a conversation, a text with a label, an image, two texts."""

from __future__ import annotations

from dataclasses import replace

from rankwise.config.experiment import Planned
from rankwise.planning.forecast import AtOnce, at_once, longest_of, rows_at_once
from rankwise.planning.image_rows import images_in_memory, passes_of, reads_by_arrow
from rankwise.planning.rows import PlannedRows
from rankwise.planning.sequence_batches import sequences_at_once
from rankwise.planning.shape import ModelShape


def largest_batches(config: Planned, shape: ModelShape, rows: PlannedRows | None) -> list[AtOnce]:
    """Several where it takes a forecast of each to know which of them needs the most memory."""
    longest = longest_of(config, shape)
    if shape.is_encoder_decoder:
        return sequences_at_once(rows, config.training, longest)
    amount = (rows_at_once if shape.is_classifier else at_once)(rows, config.training, longest)
    amount = replace(amount, learned=amount.tokens) if shape.words else amount
    if shape.image is not None and rows is not None:
        amount = replace(
            amount, images=images_in_memory(config, rows), arrow=reads_by_arrow(config), passes=passes_of(config, rows)
        )
    return [amount]
