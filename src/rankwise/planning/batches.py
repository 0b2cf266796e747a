"""The micro-batches of a training: how many tokens lie in memory at once at the most, and what a step has on average.

The largest micro-batch decides the memory. Rows of a step lie in it up to `max_batch_tokens`, a longer document alone.

    conversations   packed without padding: as many tokens as the fullest step is likely to have
    labelled rows   padded to the longest of them: as many of the longest row of all as there is room for
    an input with its output     each side is padded to its longest, in the order in which training arranges the rows of
                    a step, tried in several random orders. A token of the decoder costs more than one of the encoder,
                    and a long row more than several short ones, so micro-batches with the most tokens, the most tokens
                    of the decoder, the most tokens with a loss and the longest rows are all forecast

Validation comes on top: its rows are read before the first step, on the way and after the last, and a few of their
prompts are answered before the first step and after the last.

    read       passes x tokens of the rows, forward alone; of pairs also what they are compared with
    written    steps of decoding, each for up to 16 answers at once (time.py)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from rankwise.config.experiment import Planned
from rankwise.config.training import TrainingConfig
from rankwise.planning.operations import Load, Operations
from rankwise.planning.rows import Drawn, PlannedRows, limit_of
from rankwise.planning.shape import ModelShape
from rankwise.planning.tasks import CAUSAL, TASKS, PlannedTask
from rankwise.planning.time import Step

DEVIATIONS = 2.5
"""By how many standard deviations the fullest step of a run has more tokens than the mean one."""
OF_SHARE = 0.25
"""By how much documents differ in the share that is learned, as one standard deviation: 0.23 of Dolly's."""
ORDERS = 4
"""Passes over the drawn rows, each in another order, in which the largest micro-batch is looked for."""
OUTPUT_SHARE = 0.5
"""The share of tokens in the output, where no rows are known: the longest row has an input and an output of the largest
length each."""
SAMPLES, LONGEST, UNKNOWN = 3, 256, 64
"""As training/validation_prompts.py has them; a test compares both."""
AT_ONCE = 16
"""Answers that are written together."""
DIVERGENCE_PAIRS = 32
"""As training/pairs.py has it."""


@dataclass(frozen=True)
class AtOnce:
    """The amounts in the largest micro-batch. Where rows are known, its documents have `mean` tokens on average, and
    `share` of them are learned."""

    tokens: int
    learned: int
    longest: int
    share: float = 1.0
    mean: float | None = None
    images: int = 0
    """Images whose pixels are in memory."""
    passes: float = 1.0
    """How often a training sees each image as it is."""
    arrow: bool = False
    """Whether pyarrow reads them."""
    output_share: float = 0.0
    """The share of the tokens that the decoder has, in an encoder with a decoder."""

    def learned_of(self, tokens: int) -> int:
        """In a micro-batch of so many: of few documents some have much more to learn than the mean one."""
        if self.mean is None:
            return math.ceil(tokens * self.learned / max(1, self.tokens))
        spread = DEVIATIONS * OF_SHARE / math.sqrt(max(1.0, tokens / self.mean))
        return math.ceil(tokens * min(1.0, self.share + spread))


def longest_of(config: Planned, shape: ModelShape) -> int:
    """Tokens of the longest document there may be: a pair of answers is two texts, and so is an input with its output.
    Images have one size."""
    if shape.image is not None:
        return shape.patches
    return limit_of(config, shape) * max(config.objective_settings.texts, shape.task.texts)


def largest_batches(config: Planned, shape: ModelShape, rows: PlannedRows | None) -> list[AtOnce]:
    """Several where it takes a forecast of each to know which of them needs the most memory."""
    rows = rows if rows is not None and rows.drawn else None
    task, training, longest = shape.task, config.training, longest_of(config, shape)
    if task.stacks > 1:
        return sides_at_once(rows, training, longest)
    amount = padded_at_once(rows, training, longest, task) if task.padding else packed_at_once(rows, training, longest)
    return [amount if shape.image is None or rows is None else _with_images(amount, config, rows)]


def packed_at_once(rows: PlannedRows | None, training: TrainingConfig, limit: int) -> AtOnce:
    """Without rows: a full micro-batch in which every token is learned, of documents as long as may be."""
    most = training.max_batch_tokens
    if rows is None:
        tokens = max(1, min(most, limit * training.batch_size))
        return _with_anchor(AtOnce(tokens, tokens, min(limit, tokens)), training)
    count = training.rows_per_step(rows.count)
    mean, spread = statistics.fmean(rows.lengths), statistics.pstdev(rows.lengths)
    fullest = count * mean + DEVIATIONS * spread * math.sqrt(count)
    tokens = max(rows.longest, min(most, math.ceil(fullest)))
    amount = AtOnce(tokens, tokens, rows.longest, rows.supervised_share, mean)
    return _with_anchor(replace(amount, learned=amount.learned_of(tokens)), training)


def _with_anchor(amount: AtOnce, training: TrainingConfig) -> AtOnce:
    """The anchor's block goes into one row with the last micro-batch where there is room, and is alone elsewhere."""
    block = 0 if training.anchor is None else training.anchor.tokens
    if amount.tokens + block <= training.max_batch_tokens:
        return replace(amount, tokens=amount.tokens + block, learned=amount.learned + block)
    return replace(amount, tokens=max(amount.tokens, block), learned=max(amount.learned, block))


def padded_at_once(rows: PlannedRows | None, training: TrainingConfig, limit: int, task: PlannedTask) -> AtOnce:
    longest, count = limit, training.batch_size
    if rows is not None:
        longest, count = rows.longest, training.rows_per_step(rows.count)
    together = max(1, min(count, training.max_batch_tokens // longest))
    return AtOnce(together * longest, together * task.learned(longest), longest)


def _with_images(amount: AtOnce, config: Planned, rows: PlannedRows) -> AtOnce:
    """Add the images that training reads and those that it validates on, except validation images in a file of their
    own. With augmentation, each image counts as seen once as it is."""
    documents, training = rows.count, config.training
    seen = rows.steps(training) * training.rows_per_step(documents)
    passes = 1.0 if config.images.augmentation != "none" else max(1.0, seen / documents)
    images = min(round(rows.documents.likely), seen) + rows.held_out
    return replace(amount, images=images, arrow=rows.arrow, passes=passes)


@dataclass(frozen=True)
class MicroBatch:
    rows: int
    widths: tuple[int, ...]
    """Tokens of the longest text on each side."""
    learned: int

    @property
    def tokens(self) -> int:
        return self.rows * sum(self.widths)

    @property
    def amount(self) -> AtOnce:
        longest = sum(self.widths)
        return AtOnce(self.tokens, self.learned, longest, output_share=self.widths[-1] / longest)

    def wider(self, document: Drawn) -> MicroBatch:
        widths = tuple(map(max, self.widths, document.texts))
        return MicroBatch(self.rows + 1, widths, self.learned + document.supervised)


def sides_at_once(rows: PlannedRows | None, training: TrainingConfig, limit: int) -> list[AtOnce]:
    """The amounts of which one needs the most memory. `limit` is that of an input and of an output together."""
    if rows is None:
        count = max(1, min(training.batch_size, training.max_batch_tokens // limit))
        output = round(OUTPUT_SHARE * limit)
        return [MicroBatch(count, (limit - output, output), count * output).amount]
    every = _with_longest(rows)
    batches = [one for order in range(ORDERS) for one in micro_batches(every, rows.count, training, order)]
    largest = (
        max(batches, key=lambda item: (item.tokens, item.learned)),
        max(batches, key=lambda item: item.rows * item.widths[1]),
        max(batches, key=lambda item: item.learned), max(batches, key=lambda item: sum(item.widths)),
    )  # fmt: skip
    return [one.amount for one in dict.fromkeys(largest)]


def _with_longest(rows: PlannedRows) -> tuple[Drawn, ...]:
    """With the longest row that was seen, where it was not drawn: its sides are those of the longest drawn one."""
    longest = next(one for one in rows.drawn if one.tokens == rows.drawn[-1].tokens)
    if rows.longest <= longest.tokens:
        return rows.drawn
    output = min(rows.longest - 1, max(1, round(longest.supervised * rows.longest / longest.tokens)))
    return (*rows.drawn, Drawn((rows.longest - output, output), output, 0.0))


def micro_batches(
    documents: Sequence[Drawn], count: int, training: TrainingConfig, order: int = 0
) -> Iterator[MicroBatch]:
    """Padded ones, as the steps of a training on `count` documents have them."""
    drawn, rows = Random(order).sample(documents, len(documents)), training.rows_per_step(count)
    for begin in range(0, len(drawn), rows):
        batch: MicroBatch | None = None
        for document in sorted(drawn[begin : begin + rows], key=lambda item: item.tokens, reverse=True):
            wider = None if batch is None else batch.wider(document)
            if batch is not None and wider is not None and wider.tokens > training.max_batch_tokens:
                yield batch
                wider = None
            batch = wider or MicroBatch(1, document.texts, document.supervised)
        if batch is not None:
            yield batch


def padded_load(rows: PlannedRows, training: TrainingConfig) -> Load:
    """The drawn rows as the steps of a training compute them."""
    widths = [one.widths for one in micro_batches(rows.drawn, rows.count, training) for _ in range(one.rows)]
    outputs = tuple(both[1] for both in widths if len(both) > 1)
    return Load(tuple(map(sum, widths)), float(sum(one.supervised for one in rows.drawn)), outputs)


def average_step(operations: Operations, rows: PlannedRows, training: TrainingConfig, load: Load) -> Step:
    """The average training step. `operations` are those of `load`, which has every document that was drawn."""
    each = training.rows_per_step(rows.count) / max(1, len(rows.drawn))
    tokens = load.tokens * each
    return Step(operations.total * each, tokens, max(1, math.ceil(tokens / training.max_batch_tokens)))


def validation_work(
    config: Planned, rows: PlannedRows | None, steps: int | None, step_tokens: float, task: PlannedTask = TASKS[CAUSAL]
) -> tuple[float, float]:
    """The tokens that the run's validations read, and the steps of decoding in which they write. Rows that have a file
    of their own are answered, and their number is not known here, so they are not counted."""
    data, settings = config.data, config.validation
    if rows is None or not rows.documents.likely or steps is None:
        return 0.0, 0.0
    has_rows = bool(rows.held_out) or (data is not None and data.validation is not None)
    samples = len(settings.prompts) if settings.prompts is not None else SAMPLES * has_rows
    samples *= task.writes
    answers = settings.answers * has_rows * task.writes
    read = rows.held_out * rows.tokens.likely / rows.documents.likely
    longest = 1.5 * rows.supervised.likely / rows.documents.likely + 1
    limit = settings.max_new_tokens or (min(LONGEST, longest) if has_rows else UNKNOWN)
    interval = settings.interval(steps, round(steps * step_tokens), round(read), round(answers * limit))
    passes = 1 + math.ceil(steps / interval) if has_rows else 0
    decoded = limit * (2 * math.ceil(samples / AT_ONCE) + passes * math.ceil(answers / AT_ONCE))
    read *= task.readings
    beside = READ_BESIDE.get(config.objective, lambda *_: 0.0)(config, rows, passes, read)
    return passes * read + beside, decoded


def _of_pairs(config: Planned, rows: PlannedRows, passes: int, read: float) -> float:
    """The reference reads every pair once; each validation reads some pairs by the base and by the tuned model."""
    compared = 2 * passes * read * min(1.0, DIVERGENCE_PAIRS / rows.held_out) if rows.held_out else 0.0
    return compared + (rows.tokens.likely + read if config.preference.loss == "dpo" else 0.0)


READ_BESIDE: Mapping[str, Callable[[Planned, PlannedRows, int, float], float]] = {"preference": _of_pairs}
"""By the objective: tokens that are read beside the steps and the validation rows."""
