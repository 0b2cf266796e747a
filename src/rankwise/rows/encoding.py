"""The rows of all sources in one pass: encoded into columns, a thousand rows at a time, and counted.

preparation.py makes of it what training reads. Memory holds some bytes a row and none a token: its number of sequences,
a digest of its text and of its question, its length, and its group and label where there are any. Without a tokenizer,
everything is counted that can be counted without tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.errors import DataError
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter
from rankwise.rows.forms.labels import list_problems
from rankwise.rows.hold_out import SourceRows
from rankwise.rows.report.duplicates import TextIndex
from rankwise.rows.report.report import Tally
from rankwise.rows.sources import Reading, open_source
from rankwise.rows.text.example import Example, ImageRecord
from rankwise.rows.text.outcome import Outcome, RowEncoder
from rankwise.runs.data_report import TemplateFacts
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.runs.row_facts import ANSWERS, Learned

_Usable = tuple[int, ImageRecord | None]
"""The number of a row's sequences, and what is known of its image."""


def goes_on() -> None:
    """Nobody stops it."""


def compares(spec: DataConfig) -> bool:
    """Whether validation rows are compared with training rows."""
    return spec.may_hold_out or spec.validation is not None


@dataclass(frozen=True)
class EncodingFacts:
    """How rows are encoded, for the data report."""

    learned: Learned = ANSWERS
    template: TemplateFacts | None = None
    processing: ImageProcessing | None = None
    reads: frozenset[str] = frozenset()
    """Forms of rows that are learned (Example.special), and lists of labels."""


@dataclass
class ReadRows:
    """All rows that are read."""

    writer: RowWriter
    tally: Tally
    apart: Tally
    """Of the rows of the validation source, which are counted nowhere else."""
    prompts: TextIndex
    """What rows with the same question share, of the usable rows of all sources."""
    groups: dict[str, int] = field(default_factory=dict)
    """A number for each group."""
    trained: list[SourceRows] = field(default_factory=list)
    measured: list[SourceRows] = field(default_factory=list)

    def questions(self, spec: DataConfig) -> np.ndarray | None:
        """A number for each usable row, the same for rows with the same question; None where nobody needs it."""
        needed = spec.may_hold_out and spec.held_out_order == "seed" and spec.group is None
        return self.prompts.firsts() if needed else None


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
    check_stop: Callable[[], None] = goes_on
    """Raises where this process is to end."""
    look: Callable[[Example], Outcome] = Outcome
    """How a row is looked at that is only counted."""

    @property
    def limit(self) -> int | None:
        """Tokens of a row at most."""
        return self.encoder.limit if self.encoder is not None else None

    def read(self, folder: Path | None) -> ReadRows:
        """Read and encode all rows. What takes room lies in files without names in the folder, or in memory."""
        spec, own = self.spec, self.spec.measured_source
        readings = [(open_source(spec, source), source.weight) for source in spec.all_sources]
        measured = [] if own is None else [open_source(spec, own)]
        every = ReadRows(RowWriter(folder), self.empty.anew(folder), self.empty.anew(), TextIndex(folder))
        for reading, weight in readings:
            every.trained.append(self._source(reading, weight, every, every.tally))
        for reading in measured:
            every.measured.append(self._source(reading, 1.0, every, every.apart))
        return every

    def _source(self, reading: Reading, weight: float, every: ReadRows, tally: Tally) -> SourceRows:
        rows = SourceRows(reading, weight, len(every.writer), len(every.prompts))
        for number, chunk in enumerate(reading.chunks()):
            if number >= 2 and (share := reading.share):
                self.callback(ProgressUpdate("Reading and encoding", reading.rows, reading.rows / share, "rows"))
            self.check_stop()
            self._add(chunk, rows, every, tally)
        tally.unreadable(reading.skipped)
        return rows

    def _add(self, chunk: list[list[Example]], rows: SourceRows, every: ReadRows, tally: Tally) -> None:
        if self.encoder is not None:
            chunk = self._learnable(chunk, rows.reading.source.path, tally)
        tally.read(chunk)
        formats = {part.format for part in rows.reading.parts} - {None}
        classification = bool(formats) and formats <= {"classification", "image"}
        encoded = self._encoded(chunk, every.writer, tally)
        usable = [(row, *found) for row, found in zip(chunk, encoded, strict=True) if found is not None]
        if compares(self.spec):
            every.prompts.add([_question(row, image) for row, _, image in usable])
        for row, sequences, image in usable:
            rows.add(row, sequences, image, classification=classification)
            if self.spec.group is not None:
                group = row[0].group
                rows.groups.append(-1 if group is None else every.groups.setdefault(group, len(every.groups)))

    def _learnable(self, chunk: list[list[Example]], path: str, tally: Tally) -> list[list[Example]]:
        """Rows without those whose label is a list that the model cannot learn; DataError where all have another
        form."""
        if (special := chunk[0][0].special) is not None and special[0] not in self.facts.reads:
            raise DataError(f"{path}: holds {special[1].format(model=self.model)}")
        if "lists" in self.facts.reads:
            return chunk
        tally.unreadable(list_problems(chunk))
        return [row for row in chunk if row[0].labels is None]

    def _encoded(self, chunk: Sequence[list[Example]], writer: RowWriter, tally: Tally) -> list[_Usable | None]:
        """For each row what training can use of it."""
        encoder = self.encoder
        if encoder is None:
            outcomes = [self.look(row[0]) for row in chunk]
            return [
                (0, outcome.image) if tally.keep_unencoded(row, outcome.problem) else None
                for row, outcome in zip(chunk, outcomes, strict=True)
            ]
        outcomes = iter(encoder.encode([example for row in chunk for example in row]))
        usable: list[_Usable | None] = []
        tokens = []
        for row in chunk:
            own = [next(outcomes) for _ in row]
            learned = [sequence for outcome in own for sequence in outcome.sequences]
            learned = learned if tally.encoded(own, encoder.limit) else []
            usable.append((len(learned), own[0].image) if learned else None)
            tokens += learned
        writer.add(EncodedRows.of(tokens))
        return usable


def _question(row: Sequence[Example], image: ImageRecord | None) -> str:
    return "\n".join(example.prompt_text for example in row) if image is None else image.content.hex()
