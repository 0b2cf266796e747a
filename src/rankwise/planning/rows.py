"""How many rows and tokens a training would have, from some of its rows.

The tokens of all rows are estimated from the rows that were drawn, by the ratio of tokens to size: N rows of size X in
all, n drawn with tokens t and sizes x, R = sum t / sum x,

    T = R X,    standard error = N sqrt((1 - n / N) / n) s,    s^2 = sum (t - R x)^2 / (n - 1),

or by their mean where that is the more certain (rows that are left out for their length have no tokens, however large).
The interval is 95 %. Where tokens were not counted but taken from characters, it is as wide as that guess besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from random import Random

from rankwise.config.data import DataConfig, TooLong
from rankwise.config.training import TrainingConfig
from rankwise.planning.estimate import Estimate
from rankwise.planning.operations import Load, Operations
from rankwise.planning.time import Step

NORMAL = 1.96
"""Standard errors on either side that hold 95 %."""
CHARACTERS, OF_GUESSED = 4.0, Estimate(0.9, 1.0, 1.6)
"""Characters of one token, and how many times the tokens so guessed the real ones may be: 0.96 (LIMA) to 1.54 times
(GSM8K, where each digit is a token) on eight English data sets, by the starter's tokenizer and template, which adds a
system message of its own (lab/characters.py, lab/LOG.md). Other languages, and code, have fewer characters a token."""
AROUND_MESSAGE, AFTER_ANSWER = 5, 1
"""Tokens that a template adds where it cannot be asked: in ChatML `<|im_start|>`, the role, a line break, `<|im_end|>`
and a line break. Of these the end of an answer is learned."""


@dataclass(frozen=True)
class Drawn:
    """One document of the rows that were read: its tokens, those of them that are learned, and the size of its row."""

    tokens: int
    supervised: int
    size: float
    longer: int | None = None
    """Of a pair of conversations, whose tokens are those of both: the tokens of the longer one."""

    @property
    def compared(self) -> int:
        """Tokens that the largest length applies to."""
        return self.tokens if self.longer is None else self.longer


@dataclass(frozen=True)
class Counted:
    """What was read of a source. `rows` and `size` are of all its rows that are asked for, `documents` of the drawn."""

    rows: int
    size: float
    drawn_rows: int
    whole: bool
    """Whether the drawn rows are those that are asked for."""
    documents: tuple[Drawn, ...]
    longest: int
    """Tokens of the longest row that was seen, the largest among them."""
    exact: bool
    """Whether tokens were counted by the model's tokenizer."""


@dataclass(frozen=True)
class PlannedRows:
    documents: Estimate
    """That are trained on in one pass, each as often as its source's weight says."""
    tokens: Estimate
    supervised: Estimate
    too_long: float
    """Documents that are left out for their length, cut or split."""
    median: int
    """Of an input and an output of an encoder with a decoder: the longer one."""
    longest: int
    """That may be trained on: the longest that was found, or the limit. Of an input and an output together."""
    longest_found: int
    """Of an input and an output: the longer one, as the limit applies to each."""
    lengths: tuple[int, ...]
    """Of the documents that were drawn and are kept."""
    exact: bool
    """All rows were read, and their tokens counted by the model's own tokenizer. A template's own tokens are near."""
    replayed: float = 0.0
    """Documents among them that are replay rows."""
    sequences: int = 1
    """In each document: 2 where it is a pair of conversations."""
    held_out: int = 0
    """Documents that are kept to measure with; not among the others."""
    learned: tuple[int, ...] = ()
    """Tokens with a loss of the documents whose lengths are given, in the same order."""

    @property
    def supervised_share(self) -> float:
        return self.supervised.likely / self.tokens.likely if self.tokens.likely else 0.0

    @property
    def error(self) -> float:
        """The larger half of the interval of tokens, as a share."""
        likely = self.tokens.likely
        return max(self.tokens.high - likely, likely - self.tokens.low) / likely if likely else 0.0

    def steps(self, training: TrainingConfig) -> int:
        return training.total_steps(max(1, round(self.documents.likely)))

    def shorter(self, limit: int) -> PlannedRows:
        """Without the documents that are longer, as far as those that were drawn tell."""
        lengths = tuple(length for length in self.lengths if length <= limit)
        left = self.share(sum(lengths) / max(1, sum(self.lengths)))
        return replace(left, lengths=lengths, learned=self.learned[: len(lengths)], longest=min(limit, self.longest))

    def share(self, left: float) -> PlannedRows:
        """So many of them, as all are."""
        return replace(
            self, documents=self.documents.times(left), tokens=self.tokens.times(left),
            supervised=self.supervised.times(left), replayed=self.replayed * left,
        )  # fmt: skip

    @property
    def load(self) -> Load:
        """What was drawn, as a sample of what goes through the model."""
        lengths = [length // self.sequences for length in self.lengths for _ in range(self.sequences)]
        return Load(tuple(lengths), self.supervised_share * sum(lengths))


def planned_rows(read: Counted, *, limit: int, too_long: TooLong = "drop", weight: float = 1.0) -> PlannedRows:
    kept = [_within_limit(document, limit, too_long) for document in read.documents]
    left = [document for document in kept if document.supervised > 0]
    drawn = sorted((document.tokens, document.supervised) for document in left)
    lengths = [length for length, _ in drawn]
    tokens, supervised, documents = (
        _of_all([value(document) for document in kept], [document.size for document in kept], read).times(weight)
        for value in (_tokens, _supervised, lambda document: float(document.supervised > 0))
    )
    over = sum(document.compared > limit for document in read.documents)
    sequences = 2 if any(document.longer is not None for document in read.documents) else 1
    cut = over * weight * (1 if read.whole else read.rows / read.drawn_rows)
    return PlannedRows(
        documents, _wider(tokens, read), _wider(supervised, read), cut, _median(lengths),
        longest=min(read.longest, sequences * limit), longest_found=read.longest, lengths=tuple(lengths),
        exact=read.whole and read.exact, sequences=sequences, learned=tuple(learned for _, learned in drawn),
    )  # fmt: skip


def together(parts: Sequence[PlannedRows]) -> PlannedRows:
    """Several sources as one; each gives as many of the lengths as its share of the documents asks for."""
    assert parts
    return reduce(_joined, parts)


def without_held_out(rows: PlannedRows, spec: DataConfig) -> PlannedRows:
    """The rows that are kept to measure with are not trained on."""
    documents = rows.documents.likely
    held_out = spec.held_out_of(round(documents))
    left = rows.share(max(0.0, 1 - held_out / documents) if documents else 0.0)
    return replace(left, held_out=held_out)


def padded_load(lengths: Sequence[int], training: TrainingConfig) -> Load:
    """Rows with one target each, as the steps of a training compute them: in micro-batches of rows of like length, each
    padded to the longest of them."""
    drawn = Random(0).sample(list(lengths), len(lengths))
    padded: list[int] = []
    for begin in range(0, len(drawn), training.batch_size):
        width = count = 0
        for length in sorted(drawn[begin : begin + training.batch_size], reverse=True):
            if not count or width * (count + 1) > training.max_batch_tokens:
                width, count = length, 0
            count += 1
            padded.append(width)
    return Load(tuple(padded), float(len(padded)))


def average_step(
    operations: Operations, rows: PlannedRows, training: TrainingConfig, lengths: Sequence[int] | None = None
) -> Step:
    """Of all steps, where `operations` are those of `rows.load`, or of rows of other `lengths`, which have padding."""
    lengths = rows.load.lengths if lengths is None else lengths
    count = training.rows_per_step(max(1, round(rows.documents.likely)))
    each = count * rows.sequences / max(1, len(lengths))
    tokens = sum(lengths) * each
    return Step(operations.total * each, tokens, max(1, math.ceil(tokens / training.max_batch_tokens)))


def _within_limit(document: Drawn, limit: int, too_long: TooLong) -> Drawn:
    over = document.compared - limit
    if over <= 0 or too_long == "split":
        return document
    if too_long == "drop":
        return Drawn(0, 0, document.size)
    supervised = document.supervised - over if too_long == "truncate" else min(document.supervised, limit)
    left = document.tokens - over if supervised > 0 else 0
    return replace(document, tokens=left, supervised=max(0, supervised))


def _of_all(values: Sequence[float], sizes: Sequence[float], read: Counted) -> Estimate:
    """Of the drawn documents to those of all rows."""
    drawn, rows = read.drawn_rows, read.rows
    total = sum(values)
    if read.whole or not total:
        return Estimate.exactly(total)
    ratio = total / sum(sizes) if sum(sizes) else 0.0
    mean = total / len(values)
    spreads = (
        (ratio * read.size, _deviation([value - ratio * size for value, size in zip(values, sizes, strict=True)])),
        (total * rows / drawn, _deviation([value - mean for value in values])),
    )
    estimate, deviation = min(spreads, key=lambda spread: spread[1]) if ratio else spreads[1]
    documents, unseen = rows * len(values) / drawn, 1 - drawn / rows
    error = deviation * (documents * math.sqrt(unseen / len(values)) if unseen > 0 else math.sqrt(documents))
    return Estimate.within(estimate, NORMAL * error, least=total if unseen > 0 else 0.0)


def _deviation(residuals: Sequence[float]) -> float:
    return math.sqrt(sum(residual**2 for residual in residuals) / max(1, len(residuals) - 1))


def _wider(estimate: Estimate, read: Counted) -> Estimate:
    """By what is not known of the characters of a token."""
    if read.exact:
        return estimate
    return Estimate(estimate.low * OF_GUESSED.low, estimate.likely, estimate.high * OF_GUESSED.high)


def _joined(one: PlannedRows, other: PlannedRows) -> PlannedRows:
    shares = [part.documents.likely / max(1, len(part.lengths)) for part in (one, other)]
    least = max(1e-9, min(share for share in shares if share) if any(shares) else 1.0)
    drawn = sorted(
        pair
        for part, share in zip((one, other), shares, strict=True)
        for pair in list(zip(part.lengths, part.learned or part.lengths, strict=True))
        * max(1, min(20, round(share / least)))
    )
    lengths = [length for length, _ in drawn]
    documents, tokens, supervised = (
        getattr(one, name).plus(getattr(other, name)) for name in ("documents", "tokens", "supervised")
    )
    return PlannedRows(
        documents, tokens, supervised, one.too_long + other.too_long, _median(lengths),
        longest=max(one.longest, other.longest), longest_found=max(one.longest_found, other.longest_found),
        lengths=tuple(lengths), exact=one.exact and other.exact,
        sequences=max(one.sequences, other.sequences), learned=tuple(learned for _, learned in drawn),
        held_out=one.held_out,
    )  # fmt: skip


def _median(ordered: Sequence[int]) -> int:
    return ordered[(len(ordered) - 1) // 2] if ordered else 0


def _tokens(document: Drawn) -> float:
    return document.tokens


def _supervised(document: Drawn) -> float:
    return document.supervised
