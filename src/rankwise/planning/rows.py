"""How many rows and tokens a training would have, from some of its rows.

The tokens of all rows are estimated from the rows that were drawn, by the ratio of tokens to size: N rows of size X in
all, n drawn with tokens t and sizes x, R = sum t / sum x,

    T = R X,    standard error = N sqrt((1 - n / N) / n) s,    s^2 = sum (t - R x)^2 / (n - 1),

or by their mean where that is the more certain (rows that are left out for their length have no tokens, however large).
The interval is 95 %. Where tokens were not counted but taken from characters, it is as wide as that guess besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from rankwise.config.data import DataConfig, TooLong
from rankwise.config.training import TrainingConfig
from rankwise.planning.estimate import Estimate
from rankwise.planning.operations import Load

NORMAL = 1.96
"""Standard errors on either side that hold 95 %."""
OF_GUESSED = Estimate(0.9, 1.0, 1.6)
"""How many times the tokens guessed from characters the real ones may be: 0.96 (LIMA) to 1.54 times (GSM8K, where each
digit is a token) on eight English data sets, by the starter's tokenizer and template, which adds a system message of
its own (lab/characters.py, lab/LOG.md). Other languages, and code, have fewer characters a token."""
MOST_REPEATED = 20
"""How often a drawn document stands for its source beside those of another."""


@dataclass(frozen=True)
class Drawn:
    """One document of the rows that were read: the tokens of each of its texts, those of them that are learned, and the
    size of its row. A pair of conversations has two texts, and so has an input with its output."""

    texts: tuple[int, ...]
    supervised: int
    size: float

    @property
    def tokens(self) -> int:
        return sum(self.texts)

    @property
    def longer(self) -> int:
        """Tokens of its longest text, which the largest length applies to."""
        return max(self.texts)

    def within(self, limit: int, too_long: TooLong) -> Drawn:
        """As it is trained on; nothing of it is learned where it is left out."""
        if self.longer <= limit or too_long == "split":
            return self
        texts = tuple(min(text, limit) for text in self.texts)
        supervised = 0 if too_long == "drop" else min(self.supervised, limit)
        if too_long == "truncate":
            supervised = max(0, self.supervised - self.tokens + sum(texts))
        return replace(self, texts=texts if supervised else (0,), supervised=supervised)


@dataclass(frozen=True)
class Counted:
    """What was read of a source. `rows` and `size` are of all its rows that are asked for, `documents` of the drawn."""

    rows: int
    size: float
    drawn_rows: int
    whole: bool
    """Whether the drawn rows are those that are asked for."""
    documents: Sequence[Drawn]
    exact: bool
    """Whether tokens were counted by the model's tokenizer."""
    largest: Sequence[Drawn] = ()
    """Documents of the largest rows."""
    arrow: bool = False
    """Whether pyarrow reads them."""

    def longest(self, limit: int) -> tuple[int, int]:
        """Tokens of the longest document that may be trained on, and of the longest text."""
        seen = [*self.documents, *self.largest] or [Drawn((0,), 0, 0.0)]
        most = limit * max(len(document.texts) for document in seen)
        return min(most, max(one.tokens for one in seen)), min(limit, max(one.longer for one in seen))


@dataclass(frozen=True)
class PlannedRows:
    documents: Estimate
    """That are trained on in one pass, each as often as its source's weight says."""
    tokens: Estimate
    supervised: Estimate
    too_long: float
    """Documents that are left out for their length, cut or split."""
    longest: int
    """Tokens of the longest document that may be trained on: the longest that was seen, or the limit."""
    longest_text: int
    drawn: tuple[Drawn, ...]
    """The documents that were drawn and are trained on, the shortest first."""
    exact: bool
    """All rows were read, and their tokens counted by the model's own tokenizer. A template's own tokens are near."""
    replayed: float = 0.0
    """Documents among them that are replay rows."""
    held_out: int = 0
    """Documents that are kept to measure with; not among the others."""
    arrow: bool = False
    """Whether pyarrow reads them."""

    @property
    def count(self) -> int:
        """Documents of one pass, as training counts them."""
        return max(1, round(self.documents.likely))

    @property
    def lengths(self) -> list[int]:
        return [document.tokens for document in self.drawn]

    @property
    def median(self) -> int:
        """Of the longest text of each document."""
        ordered = sorted(document.longer for document in self.drawn)
        return ordered[len(ordered) // 2] if ordered else 0

    @property
    def of_pairs(self) -> bool:
        return {len(document.texts) for document in self.drawn} == {2}

    @property
    def supervised_share(self) -> float:
        return self.supervised.likely / self.tokens.likely if self.tokens.likely else 0.0

    @property
    def error(self) -> float:
        """The larger half of the interval of tokens, as a share."""
        likely = self.tokens.likely
        return max(self.tokens.high - likely, likely - self.tokens.low) / likely if likely else 0.0

    def steps(self, training: TrainingConfig) -> int:
        return training.total_steps(self.count)

    def shorter(self, limit: int) -> PlannedRows:
        """Without the documents that are longer, as far as those that were drawn tell."""
        drawn = tuple(document for document in self.drawn if document.tokens <= limit)
        left = self.share(sum(document.tokens for document in drawn) / max(1, sum(self.lengths)))
        return replace(left, drawn=drawn, longest=min(limit, self.longest))

    def share(self, left: float) -> PlannedRows:
        """So many of them, as all are."""
        return replace(
            self, documents=self.documents.times(left), tokens=self.tokens.times(left),
            supervised=self.supervised.times(left), replayed=self.replayed * left,
        )  # fmt: skip

    @property
    def load(self) -> Load:
        """What was drawn, as a sample of what goes through the model: every text by itself."""
        lengths = tuple(text for document in self.drawn for text in document.texts)
        return Load(lengths, self.supervised_share * sum(lengths))


def planned_rows(read: Counted, *, limit: int, too_long: TooLong = "drop", weight: float = 1.0) -> PlannedRows:
    """`limit` is the largest length of a text."""
    fitted = [document.within(limit, too_long) for document in read.documents]
    documents = _of_all([float(one.supervised > 0) for one in fitted], read)
    low, high = (1.0, 1.0) if read.exact else (OF_GUESSED.low, OF_GUESSED.high)  # of the characters of a token
    tokens, supervised = (
        Estimate(one.low * low, one.likely, one.high * high)
        for values in ([one.tokens for one in fitted], [one.supervised for one in fitted])
        for one in [_of_all(values, read)]
    )
    over = sum(document.longer > limit for document in read.documents)
    return PlannedRows(
        documents.times(weight), tokens.times(weight), supervised.times(weight),
        over * weight * (1 if read.whole else read.rows / read.drawn_rows), *read.longest(limit),
        _sorted(one for one in fitted if one.supervised), exact=read.whole and read.exact, arrow=read.arrow,
    )  # fmt: skip


def together(parts: Sequence[PlannedRows]) -> PlannedRows:
    """Several sources as one; each gives as many of its drawn documents as its share of all asks for."""
    if len(parts) == 1:
        return parts[0]
    shares = [part.documents.likely / max(1, len(part.drawn)) for part in parts]
    least = max(1e-9, min((share for share in shares if share), default=1.0))
    drawn = [
        document
        for part, share in zip(parts, shares, strict=True)
        for document in part.drawn * max(1, min(MOST_REPEATED, round(share / least)))
    ]
    documents, tokens, supervised = (
        reduce(Estimate.plus, [getattr(part, name) for part in parts]) for name in ("documents", "tokens", "supervised")
    )
    return PlannedRows(
        documents, tokens, supervised, sum(part.too_long for part in parts), max(part.longest for part in parts),
        max(part.longest_text for part in parts), _sorted(drawn), exact=all(part.exact for part in parts),
        held_out=parts[0].held_out, arrow=any(part.arrow for part in parts),
    )  # fmt: skip


def without_held_out(rows: PlannedRows, spec: DataConfig) -> PlannedRows:
    """The rows that are kept to measure with are not trained on."""
    documents = rows.documents.likely
    held_out = spec.held_out_of(round(documents))
    left = rows.share(max(0.0, 1 - held_out / documents) if documents else 0.0)
    return replace(left, held_out=held_out)


def _sorted(documents: Iterable[Drawn]) -> tuple[Drawn, ...]:
    return tuple(sorted(documents, key=lambda one: (one.tokens, one.supervised)))


def _of_all(values: Sequence[float], read: Counted) -> Estimate:
    """Of the drawn documents to those of all rows."""
    drawn, rows, sizes = read.drawn_rows, read.rows, [document.size for document in read.documents]
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
