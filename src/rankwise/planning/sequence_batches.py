"""The micro-batches of an encoder with a decoder: rows of an input and an output, each side padded to its longest.

They are arranged as training arranges the rows of a step (objectives/sequence_to_sequence.py), from rows that were
drawn, in several random orders. A token of the decoder costs more than one of the encoder, and a long row more than
several short ones, so the largest micro-batch is not always the one with the most tokens: those with the most tokens,
the most tokens of the decoder, the most tokens with a loss and the longest rows are all forecast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from rankwise.config.training import TrainingConfig
from rankwise.planning.forecast import AtOnce
from rankwise.planning.operations import Load
from rankwise.planning.rows import PlannedRows

ORDERS = 4
"""Passes over the drawn rows, each in another order, in which the largest micro-batch is looked for."""
OUTPUT_SHARE = 0.5
"""Of the tokens of the longest row there may be: an input and an output of the largest length."""
Sides = tuple[int, int]
"""Tokens of an input, and of its output."""


@dataclass(frozen=True)
class MicroBatch:
    rows: int
    given: int
    output: int
    """Tokens of the longest input and of the longest output."""
    learned: int

    @property
    def tokens(self) -> int:
        return self.rows * (self.given + self.output)

    @property
    def amount(self) -> AtOnce:
        longest = self.given + self.output
        return AtOnce(self.tokens, self.learned, longest, output_share=self.output / longest)


def sequences_at_once(rows: PlannedRows | None, training: TrainingConfig, limit: int) -> list[AtOnce]:
    """The amounts of which one needs the most memory. `limit` is that of an input and of an output together."""
    if rows is None or not rows.lengths:
        count = max(1, min(training.batch_size, training.max_batch_tokens // limit))
        output = round(OUTPUT_SHARE * limit)
        return [MicroBatch(count, limit - output, output, count * output).amount]
    found = [one for order in range(ORDERS) for one in micro_batches(_with_longest(rows), training, order)]
    largest = (
        max(found, key=lambda one: (one.tokens, one.learned)), max(found, key=lambda one: one.rows * one.output),
        max(found, key=lambda one: one.learned), max(found, key=lambda one: one.given + one.output),
    )  # fmt: skip
    return [one.amount for one in dict.fromkeys(largest)]


def padded_sides(rows: PlannedRows, training: TrainingConfig) -> Load:
    """The drawn rows as the steps of a training compute them."""
    every = [one for one in micro_batches(rows, training) for _ in range(one.rows)]
    lengths, outputs = tuple(one.given + one.output for one in every), tuple(one.output for one in every)
    return Load(lengths, float(sum(rows.learned)), outputs)


def micro_batches(rows: PlannedRows, training: TrainingConfig, order: int = 0) -> Iterator[MicroBatch]:
    sides = [(length - output, output) for length, output in zip(rows.lengths, rows.learned, strict=True)]
    drawn = Random(order).sample(sides, len(sides))
    count = training.rows_per_step(max(1, round(rows.documents.likely)))
    for begin in range(0, len(drawn), count):
        yield from _arranged(drawn[begin : begin + count], training.max_batch_tokens)


def _arranged(step: list[Sides], most: int) -> Iterator[MicroBatch]:
    batch: MicroBatch | None = None
    for given, output in sorted(step, key=sum, reverse=True):
        alone = MicroBatch(1, given, output, output)
        if batch is not None:
            wider = MicroBatch(
                batch.rows + 1, max(batch.given, given), max(batch.output, output), batch.learned + output
            )
            if wider.tokens <= most:
                batch = wider
                continue
            yield batch
        batch = alone
    if batch is not None:
        yield batch


def _with_longest(rows: PlannedRows) -> PlannedRows:
    """With the longest row that was seen, where it was not drawn: its sides are those of the longest drawn one."""
    longest = max(rows.lengths)
    if rows.longest <= longest:
        return rows
    output = rows.learned[rows.lengths.index(longest)]
    more = min(rows.longest - 1, max(1, round(output * rows.longest / longest)))
    return replace(rows, lengths=(*rows.lengths, rows.longest), learned=(*rows.learned, more))
