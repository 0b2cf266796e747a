"""The rows of all sources in one pass, encoded into columns and counted.

A thousand rows are encoded at a time. Memory holds some bytes a row and none a token: its number of sequences, a digest
of its text and of its question, its length, and its group and label where there are any. Every row is encoded once.
Without a tokenizer everything is counted that can be counted without tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter
from rankwise.rows.forms.labels import Labels, list_problems
from rankwise.rows.hold_out import SourceRows
from rankwise.rows.report.duplicates import TextIndex
from rankwise.rows.report.meaning import bare_of
from rankwise.rows.report.raw_rows import RawReport
from rankwise.rows.report.report import Tally
from rankwise.rows.sources import OpenedSource, open_source
from rankwise.rows.text.example import Example, ImageRecord
from rankwise.rows.text.outcome import EncodingFacts, Outcome, RowEncoder
from rankwise.runs.records import Callback, ProgressUpdate, silent

if TYPE_CHECKING:
    from rankwise.constraints.constraint import AnswerForms

_Usable = tuple[int, ImageRecord | None]
"""The number of a row's sequences, and what is known of its image."""


def goes_on() -> None:
    """The default `check_stop`: nothing ends this process."""


def compares(config: DataConfig) -> bool:
    """Whether validation rows are compared with training rows."""
    return config.may_hold_out or config.validation is not None


@dataclass
class CountedSources:
    """The rows of the training sources, or of the validation source, and their counts."""

    tally: Tally
    sources: list[SourceRows] = field(default_factory=list)

    @property
    def labels(self) -> Labels:
        return Labels.joined(source.labels for source in self.sources)

    @property
    def raw(self) -> list[RawReport]:
        return [source.raw for source in self.sources]


@dataclass
class ReadRows:
    """All rows that are read."""

    writer: RowWriter
    trained: CountedSources
    validation: CountedSources
    prompts: TextIndex
    """What rows with the same question share, of the usable rows of all sources."""
    answers: AnswerForms | None = None
    """What the answers are held to."""
    groups: dict[str, int] = field(default_factory=dict)
    """A number for each group."""

    def questions(self, config: DataConfig) -> np.ndarray | None:
        """A number for each usable row, the same for rows with the same question; None where nobody needs it."""
        needed = config.may_hold_out and config.held_out_order == "seed" and config.group is None
        return self.prompts.firsts() if needed else None


@dataclass(frozen=True)
class Encoding:
    """How the rows of all sources are encoded. Without an `encoder` they are only counted."""

    config: DataConfig
    encoder: RowEncoder | None
    facts: EncodingFacts
    callback: Callback = silent
    model: str | None = None
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
        spec, own = self.config, self.config.measured_source
        readings = [(open_source(spec, source), source.weight) for source in spec.all_sources]
        measured = [] if own is None else [open_source(spec, own)]
        answers = None if self.facts.answers is None else self.facts.answers()
        own, apart = CountedSources(Tally(self.facts, TextIndex(folder))), CountedSources(Tally(self.facts))
        every = ReadRows(RowWriter(folder), own, apart, TextIndex(folder), answers)
        for reading, weight in readings:
            own.sources.append(self._source(reading, weight, every, own.tally))
        for reading in measured:
            apart.sources.append(self._source(reading, 1.0, every, apart.tally))
        return every

    def _source(self, reading: OpenedSource, weight: float, every: ReadRows, tally: Tally) -> SourceRows:
        raw = RawReport(reading)
        rows = SourceRows(raw, weight, len(every.writer), len(every.prompts))
        for number, chunk in enumerate(reading.chunks(raw.add)):
            if number >= 2 and (share := reading.share):
                self.callback(ProgressUpdate("Reading and encoding", reading.rows, reading.rows / share, "rows"))
            self.check_stop()
            self._add(chunk, rows, every, tally)
        tally.unreadable(reading.skipped)
        return rows

    def _add(self, chunk: list[list[Example]], rows: SourceRows, every: ReadRows, tally: Tally) -> None:
        if self.encoder is not None:
            chunk = self._learnable(chunk, rows.raw.reading.source.path, tally)
        if every.answers is not None:
            chunk = _keeping(chunk, every.answers, tally)
        tally.read(chunk)
        formats = {part.format for part in rows.raw.reading.parts} - {None}
        classification = bool(formats) and formats <= {"classification", "image"}
        encoded = self._encoded(chunk, every.writer, tally)
        usable = [(row, *found) for row, found in zip(chunk, encoded, strict=True) if found is not None]
        if compares(self.config):
            every.prompts.add([_question(row, image) for row, _, image in usable])
        for row, sequences, image in usable:
            rows.add(row, sequences, image, classification=classification)
            if self.config.group is not None:
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


def _keeping(chunk: list[list[Example]], answers: AnswerForms, tally: Tally) -> list[list[Example]]:
    """The rows whose answers keep to the constraint; the others cannot be used."""
    problems = [
        (row[0].where, f"{row[0].where}: the answer {problem}")
        for row in chunk
        if (problem := next(filter(None, (answers.problem(one.last_answer) for one in row)), None)) is not None
    ]
    tally.unreadable(problems)
    broken = {where for where, _ in problems}
    return [row for row in chunk if row[0].where not in broken]


def _question(row: Sequence[Example], image: ImageRecord | None) -> str:
    return bare_of("\n".join(example.prompt_text for example in row)) if image is None else image.content.hex()
