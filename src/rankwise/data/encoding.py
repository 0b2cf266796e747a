"""Rows of sources into encoded parts, a thousand rows at a time. joining.py comes next.

Every process reads all rows, which is cheap, and encodes those of its own parts. Without a tokenizer, everything is
counted that can be counted without tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.data.image_report import looked_at
from rankwise.data.labels import list_problems
from rankwise.data.part_store import PartStore
from rankwise.data.report import Tally
from rankwise.data.row_part import RowFacts, RowPart
from rankwise.data.sequences import EncodedRows
from rankwise.data.sources import CHUNK, Reading
from rankwise.errors import DataError
from rankwise.runs.data_report import TemplateFacts
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.runs.row_facts import PairFacts, TargetFacts
from rankwise.text.encode import RowEncoder
from rankwise.text.example import Example, ImageRecord

_Usable = tuple[int, ImageRecord | None]
"""The number of a row's sequences, and what is known of its image."""


@dataclass(frozen=True)
class EncodingFacts:
    """How rows are encoded, for the data report."""

    template: TemplateFacts | None = None
    encoder_decoder: bool = False
    """Whether an encoder reads a row's input and a decoder writes its output."""
    processing: ImageProcessing | None = None
    pairs: PairFacts | None = None
    """How pairs are learned, where rows are pairs."""


@dataclass(frozen=True)
class Encoding:
    """How the rows of all sources are encoded. Without an `encoder` they are only counted."""

    spec: DataConfig
    encoder: RowEncoder | None
    empty: Tally
    """What each tally begins as."""
    callback: Callback
    model: str | None
    facts: EncodingFacts
    targets: TargetFacts | None

    @property
    def limit(self) -> int | None:
        """Tokens of a row at most."""
        return self.encoder.limit if self.encoder is not None else None

    def encode_all(self, readings: Sequence[tuple[Reading, float]], store: PartStore) -> None:
        """Store the parts of this process that are not there."""
        for number, (reading, _) in enumerate(readings):
            self.encode(reading, number, store)
        if store.there:
            rows = store.there * store.chunks * CHUNK
            self.callback(StatusMessage(f"went on with rows that an earlier run had encoded: up to {rows:,}"))

    def encode(self, reading: Reading, source: int, store: PartStore) -> None:
        """Store the parts of a source that are not there."""
        divides = store.divides(reading)
        if not divides and not store.encoders.is_first:
            return
        wants = _Wants(reading, source, store)
        part: _Part | None = None
        for number, chunk in enumerate(reading.chunks(wants if divides else None)):
            if number >= 2 and (share := reading.share):
                self.callback(ProgressUpdate("Reading and encoding", reading.rows, reading.rows / share, "rows"))
            store.encoders.check_stop()
            place = number % store.chunks
            if not wants(number):
                continue
            part = _Part(self, reading) if part is None else part
            part.add(chunk)
            if place == store.chunks - 1:
                store.put(reading, part.finished(store))
                part = None
        if part is not None:
            store.put(reading, part.finished(store))


@dataclass
class _Wants:
    """Which chunks of a source this process encodes."""

    reading: Reading
    source: int
    store: PartStore
    _part: int = -1
    _encodes: bool = False

    def __call__(self, chunk: int) -> bool:
        part = chunk // self.store.chunks
        if part != self._part:
            self._part, self._encodes = part, self.store.begin(self.reading, self.source, part)
        return self._encodes


@dataclass
class _Part:
    """A part while it is made."""

    work: Encoding
    reading: Reading
    rows: list[EncodedRows] = field(default_factory=list)
    facts: RowFacts = field(default_factory=RowFacts)

    def __post_init__(self) -> None:
        self.tally = self.work.empty.anew()

    def add(self, chunk: list[list[Example]]) -> None:
        work = self.work
        if not chunk:
            return
        self._refuse_others(chunk[0][0])
        if work.encoder is not None and work.targets is None:  # a language model
            self.tally.unreadable(list_problems(chunk))
            chunk = [row for row in chunk if row[0].labels is None]
        self.tally.read(chunk)
        formats = {part.format for part in self.reading.parts} - {None}
        classification = bool(formats) and formats <= {"classification", "image"}
        usable = [(row, *found) for row, found in zip(chunk, self._encoded(chunk), strict=True) if found is not None]
        self.facts.add(usable, work.spec, classification=classification)

    def finished(self, store: PartStore) -> RowPart:
        """With what reading has collected meanwhile, unless all of it belongs to the whole source."""
        part = RowPart(EncodedRows.gathered(self.rows), self.tally, self.facts)
        if store.divides(self.reading):
            part.skipped, self.reading.skipped = self.reading.skipped, []
            part.unused, self.reading.unused = self.reading.unused, {}
        return part

    def _refuse_others(self, first: Example) -> None:
        """Where the model reads texts, it would be trained on the names of image files; and of a pair's answers, what
        is no preference tuning would learn the chosen ones alone, and of tagged words a list of spans."""
        work, path = self.work, self.reading.source.path
        if work.encoder is None:
            return
        if first.rejected and work.facts.pairs is None:
            raise DataError(f"{path}: holds preference pairs. Add --objective preference.")
        if first.tagged is not None and not (work.targets and work.targets.form == "tags"):
            raise DataError(f"{path}: holds words with tags. Add --objective token-classification.")
        if first.image is not None and work.facts.processing is None:
            raise DataError(
                f"{path}: holds images, and the model {work.model} reads texts. Choose a vision model with --model, "
                "such as dinov2-small."
            )

    def _encoded(self, chunk: Sequence[list[Example]]) -> list[_Usable | None]:
        """For each row what training can use of it."""
        encoder = self.work.encoder
        if encoder is None:
            outcomes = [looked_at(row[0]) for row in chunk]
            return [
                (0, outcome.image) if self.tally.keep_unencoded(row, outcome.problem) else None
                for row, outcome in zip(chunk, outcomes, strict=True)
            ]
        outcomes = iter(encoder.encode([example for row in chunk for example in row]))
        made: list[_Usable | None] = []
        tokens = []
        for row in chunk:
            own = [next(outcomes) for _ in row]
            kept = [sequence for outcome in own for sequence in outcome.sequences]
            kept = kept if self.tally.encoded(own, encoder.limit) else []
            made.append((len(kept), own[0].image) if kept else None)
            tokens += kept
        self.rows.append(EncodedRows.of(tokens))
        return made
