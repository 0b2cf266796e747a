"""The rows of all sources in one pass, encoded into columns and counted; what training reads of them, and the report.

A thousand rows are encoded at a time. Memory holds some bytes a row and none a token: its number of sequences, a digest
of its text and of its question, its length, and its group and label where there are any. Which rows are held out
(hold_out.py) and how often each is seen in a pass is decided here, so every row is encoded once. Without a tokenizer
everything is reported that can be counted without tokens.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.errors import DataError
from rankwise.rows.encoded.row_order import BalancedOrder, Replay, ReplayOrder, repeats_of
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter, SelectedRows
from rankwise.rows.files.hub import Part
from rankwise.rows.files.licences import UNKNOWN, find_licence, normalised, strictest
from rankwise.rows.forms.labels import Labels, list_problems
from rankwise.rows.forms.proposals import literal_breaks
from rankwise.rows.hold_out import MOST_LABELS, SourceRows, facts_of, hold_out, overlap_between
from rankwise.rows.report.duplicates import TextIndex
from rankwise.rows.report.image_report import findings_of
from rankwise.rows.report.meaning import bare_of
from rankwise.rows.report.relations import SURVEYS
from rankwise.rows.report.report import Tally, advice_on, fatal_problems, left_out, warnings_of
from rankwise.rows.report.unused import problems, sentences, unused_columns
from rankwise.rows.sources import OpenedSource, open_source
from rankwise.rows.text.example import Example, ImageRecord
from rankwise.rows.text.outcome import Outcome, RowEncoder
from rankwise.runs.data_report import DataReport, OverlapFacts, PartFacts, TemplateFacts, ValidationFacts
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.runs.row_facts import ANSWERS, HoldOutFacts, Learned

if TYPE_CHECKING:
    from rankwise.constraints.constraint import AnswerForms

MOST_ROW_HASHES = 500_000
"""Rows of more are not hashed one by one: the report would be too large to be read."""
_Usable = tuple[int, ImageRecord | None]
"""The number of a row's sequences, and what is known of its image."""


def goes_on() -> None:
    """Nobody stops it."""


def compares(config: DataConfig) -> bool:
    """Whether validation rows are compared with training rows."""
    return config.may_hold_out or config.validation is not None


@dataclass(frozen=True)
class EncodingFacts:
    """How rows are encoded, for the data report."""

    learned: Learned = ANSWERS
    template: TemplateFacts | None = None
    processing: ImageProcessing | None = None
    reads: frozenset[str] = frozenset()
    """Forms of rows that are learned (Example.special), and lists of labels."""
    answers: Callable[[], AnswerForms] | None = None
    """Makes the check of answers; None where they are free."""


@dataclass
class ReadRows:
    """All rows that are read."""

    writer: RowWriter
    tally: Tally
    validation_tally: Tally
    """Counts the rows of the validation source, which are counted nowhere else."""
    prompts: TextIndex
    """What rows with the same question share, of the usable rows of all sources."""
    answers: AnswerForms | None = None
    """What the answers are held to."""
    groups: dict[str, int] = field(default_factory=dict)
    """A number for each group."""
    trained: list[SourceRows] = field(default_factory=list)
    validation: list[SourceRows] = field(default_factory=list)

    def questions(self, config: DataConfig) -> np.ndarray | None:
        """A number for each usable row, the same for rows with the same question; None where nobody needs it."""
        needed = config.may_hold_out and config.held_out_order == "seed" and config.group is None
        return self.prompts.firsts() if needed else None


@dataclass(frozen=True)
class Encoding:
    """How the rows of all sources are encoded. Without an `encoder` they are only counted."""

    config: DataConfig
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
        spec, own = self.config, self.config.measured_source
        readings = [(open_source(spec, source), source.weight) for source in spec.all_sources]
        measured = [] if own is None else [open_source(spec, own)]
        answers = None if self.facts.answers is None else self.facts.answers()
        every = ReadRows(RowWriter(folder), self.empty.anew(folder), self.empty.anew(), TextIndex(folder), answers)
        for reading, weight in readings:
            every.trained.append(self._source(reading, weight, every, every.tally))
        for reading in measured:
            every.validation.append(self._source(reading, 1.0, every, every.validation_tally))
        return every

    def _source(self, reading: OpenedSource, weight: float, every: ReadRows, tally: Tally) -> SourceRows:
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
        if every.answers is not None:
            chunk = _keeping(chunk, every.answers, tally)
        tally.read(chunk)
        formats = {part.format for part in rows.reading.parts} - {None}
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


@dataclass(frozen=True)
class Prepared:
    """`trained` and `validation` are numbers of sequences; `trained` holds one as often as a pass sees it."""

    sequences: EncodedRows
    trained: np.ndarray
    validation: np.ndarray
    data_report: DataReport
    replay: Replay | None = None
    """Rows that training shows among its own; None without replay."""

    @property
    def trained_rows(self) -> SelectedRows:
        """The run's own."""
        return SelectedRows(self.sequences, self.trained)

    @property
    def shown_rows(self) -> SelectedRows:
        """The run's own, and behind them those that are replayed."""
        if self.replay is None:
            return self.trained_rows
        return SelectedRows(self.sequences, np.concatenate([self.trained, self.replay.numbers]))

    @property
    def rows_in_pass(self) -> int:
        """Rows that are shown in a pass over the run's own."""
        return len(self.trained) + (0 if self.replay is None else self.replay.in_pass)

    @property
    def tokens_in_pass(self) -> int:
        """With replay this is about right: its rows may have other lengths in each pass."""
        own = self.trained_rows.tokens
        if self.replay is None:
            return own
        others = SelectedRows(self.sequences, self.replay.numbers)
        return own + others.tokens * self.replay.in_pass // len(others)

    @property
    def measured_rows(self) -> SelectedRows:
        return SelectedRows(self.sequences, self.validation)

    def with_references(self, values: np.ndarray) -> Prepared:
        """These preference pairs with the log-probabilities (N, 2) of their two answers before training."""
        return replace(self, sequences=replace(self.sequences, references=values))

    def order(self, seed: int) -> BalancedOrder | ReplayOrder | None:
        """Which of `shown_rows` is shown at each position of a training: None where each is shown once in a pass."""
        if self.replay is not None:
            return ReplayOrder(len(self.trained), len(self.replay.numbers), self.replay.share, seed)
        if not self.data_report.learned.evened:
            return None
        return BalancedOrder(self.sequences.columns["targets"][self.trained], seed)

    @property
    def widest(self) -> int:
        """Inputs of the longest row; a row of two conversations has those of both."""
        return int(np.concatenate([self.shown_rows.lengths, self.measured_rows.lengths]).max()) - 1

    @property
    def longest(self) -> int:
        """Inputs of the longest sequence that is computed by itself."""
        if self.data_report.pairs is None:
            return self.widest
        sides = [self.sequences.lengths_of_sides(numbers) for numbers in (self.trained, self.validation)]
        return int(np.concatenate(sides).max()) - 1


def prepared_of(work: Encoding, every: ReadRows) -> Prepared:
    """The rows that were read, and the report on them."""
    spec, evened = work.config, work.facts.learned.evened
    sequences = every.writer.rows()
    trained, measured = every.trained, every.validation
    candidates = [source.candidates(every.questions(spec)) for source in trained]
    for source, chosen in zip(trained, hold_out(candidates, spec), strict=True):
        source.held_out = chosen
    for source in measured:
        source.held_out = np.ones(len(source), bool)
    rng = np.random.default_rng([spec.seed, 2])
    none = np.empty(0, np.int64)
    numbers = np.concatenate([none, *(source.weighted(rng) for source in trained)])
    apart = np.concatenate([none, *(source.numbers(source.rows(held_out=True)) for source in (*trained, *measured))])
    chosen = facts_of(candidates, [source.held_out for source in trained], spec)
    compared = compares(spec) and (chosen is not None or bool(measured))
    overlap = overlap_between(every.prompts, trained, measured) if compared else None
    data_report = _data_report(work, every, len(numbers), overlap, chosen)
    if evened and "targets" in sequences.columns:
        repeats = repeats_of(sequences.columns["targets"][numbers], evened)
        data_report = data_report.model_copy(update={"class_repeats": repeats})
    return Prepared(sequences, numbers, apart, data_report)


def _data_report(
    work: Encoding, every: ReadRows, trained: int, overlap: OverlapFacts | None, facts: HoldOutFacts | None
) -> DataReport:
    tally, apart, sources = every.tally, every.validation_tally, every.trained
    spec, learned = work.config, work.facts.learned
    readings = [source.reading for source in (*sources, *every.validation)]
    hashed = tally.rows + apart.rows <= MOST_ROW_HASHES
    files = tuple(part_facts(reading, part, hashed=hashed) for reading in readings for part in reading.parts)
    encodes, labels = work.encoder is not None, Labels.joined(source.labels for source in sources)
    unused = unused_columns(readings)
    images = [image for source in sources for image in source.images]
    findings = findings_of(images, [name for reading in readings for name in reading.passed_over]) if images else None
    exact, near = (tally.texts.repeats() if findings is None else findings.duplicates).counts
    tags = tally.tags.facts(encoded=encodes) if tally.tags.words else None
    doubts = tally.meaning.doubts(labels, learned, SURVEYS, spec.accept)
    of_measured = Labels.joined(source.labels for source in every.validation)
    path = spec.validation.path if spec.validation is not None else None
    of_validation = fatal_problems(apart, spec, limit=work.limit, trained=apart.used, name=path) if path else []
    fatal = (*_fatal(work, tally, sources, trained, facts), *of_validation)
    fatal += (*(doubt.refusal for doubt in doubts if doubt.stops), *problems(readings, unused)) if tally.used else ()
    remarks = (
        *literal_breaks(spec.all_sources, spec.system),
        *(left_out(tally, spec) if not fatal else ()),
        *sentences(unused),
        *(warning for reading in readings for warning in reading.warnings()),
        *warnings_of(tally, overlap, *((near, exact) if findings is None else (0, 0))),
        *(findings.warnings if findings is not None else ()),
        *(doubt.text for doubt in doubts if not doubt.stops),
        *(tags.doubts() if tags is not None else ()),
        *labels.remarks(),
        *labels.without_rows(learned.names),
        *labels.never_trained(facts),
        *(f"validation rows: {warning}" for warning in warnings_of(apart, None, 0, 0)),
        *(f"validation rows: {doubt.text}" for doubt in apart.meaning.doubts(of_measured, learned, SURVEYS)),
        *(f"validation {warning}" for warning in left_out(apart, spec) if not fatal),
    )
    return DataReport(
        format=", ".join(dict.fromkeys(file.format for file in files if file.format)),
        files=files,
        left_aside=tuple(name for reading in readings for name in reading.left_aside),
        model=work.model,
        validation_rows=(facts.rows if facts is not None else 0) or apart.used,
        hold_out=facts,
        labels=dict(labels.counts.most_common(MOST_LABELS)) if labels else None,
        distinct_labels=len(labels.counts) if labels else None,
        validation=validation_of(apart, encodes) if spec.validation is not None else None,
        duplicates=exact, near_duplicates=near, overlap=overlap,
        licence=strictest(file.licence for file in files),
        **(every.answers.facts if every.answers is not None else {}),
        recipe=spec.recipe, images=findings.facts if findings is not None else None,
        image_processing=work.facts.processing,
        tags=tags,
        unused_columns=unused,
        doubts=tuple(doubts),
        warnings=remarks,
        fatal=fatal,
        advice=(*advice_on(tally, spec), *advice_on(apart, spec)),
        **learned.reported(tally.pairs.counted(tally.used)),
        **counts_of(tally, encodes, work.facts),
    )  # fmt: skip


def _fatal(
    work: Encoding, tally: Tally, sources: Sequence[SourceRows], trained: int, facts: HoldOutFacts | None
) -> list[str]:
    """Why the training rows must not be trained on."""
    spec = work.config
    name = ", ".join(dict.fromkeys(source.reading.source.path for source in sources))
    remaining = trained if work.encoder is not None else tally.used - (facts.rows if facts is not None else 0)
    fatal = fatal_problems(tally, spec, limit=work.limit, trained=remaining, name=name)
    if spec.group is not None and facts is None and not fatal:
        fatal += [f"{name}: all rows have the same {spec.group} (data.group), so none can become validation rows."]
    return fatal or [problem for source in sources for problem in source.weighed_out()]


def counts_of(tally: Tally, encodes: bool, facts: EncodingFacts) -> dict[str, Any]:
    """What the report takes from the tally as it is; counts of tokens only where rows were encoded, and none of what
    such rows do not have."""
    counts: dict[str, Any] = {
        "rows": tally.rows,
        "used": tally.used,
        "skipped": sum(tally.skipped.values()),
        "skipped_why": dict(tally.skipped),
        "skipped_rows": tuple(tally.skipped_rows),
        "lengths": tally.length_facts(),
        "masks": dict(tally.masks),
        "template_parity": tally.unlike_asked == 0 if tally.sequences else None,
        "unknown_special_tokens": dict(tally.unknown_special),
        "replacement_characters": tally.replacements,
        "system": tally.system,
        "template": facts.template,
    }
    of_tokens: dict[str, int | None] = {
        "sequences": tally.sequences,
        "tokens": tally.tokens,
        "loss_tokens": tally.loss_tokens,
        "eos_in_loss": tally.ended,
        "truncated": tally.truncated,
        "without_loss_tokens": tally.without_loss_tokens,
        "template_parity_broken": tally.unlike_asked,
        "double_start": tally.double_start,
        "control_tokens_as_text": tally.control_tokens,
    }
    return counts | (of_tokens if encodes else dict.fromkeys(of_tokens)) | dict.fromkeys(facts.learned.uncounted)


def validation_of(validation: Tally, encodes: bool) -> ValidationFacts:
    return ValidationFacts(
        rows=validation.rows,
        used=validation.used,
        skipped=sum(validation.skipped.values()),
        skipped_why=dict(validation.skipped),
        skipped_rows=tuple(validation.skipped_rows),
        truncated=validation.truncated if encodes else None,
        loss_tokens=validation.loss_tokens if encodes else None,
    )


def part_facts(reading: OpenedSource, part: Part, *, hashed: bool) -> PartFacts:
    given = reading.source.licence or part.licence
    found = find_licence(part.folder) if given is None and part.folder is not None else UNKNOWN
    licence = normalised(given) if given is not None else found
    return PartFacts(
        name=part.name, sha256=part.identity(), format=part.format, rows=part.rows, licence=licence, layout=part.layout,
        row_hashes=b64encode(part.raw.hashes).decode() if hashed else "",
    )  # fmt: skip
