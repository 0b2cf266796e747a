"""Sources into sequences and their data report, in one pass, a thousand rows at a time.

Which rows are held out (hold_out.py) and how often each is seen in a pass is decided afterwards, so every row is
encoded once. Without a tokenizer everything is counted that can be counted without tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.data.balanced import BalancedOrder, repeats_of
from rankwise.data.hold_out import MOST_LABELS, facts_of, hold_out
from rankwise.data.image_report import findings_of, looked_at
from rankwise.data.labels import Labels, list_problems
from rankwise.data.licences import strictest
from rankwise.data.replay import Replay, ReplayOrder
from rankwise.data.report import Tally, advice_on, fatal_problems, warnings_of
from rankwise.data.report_facts import counts_of, part_facts, validation_of
from rankwise.data.sequences import EncodedRows, SelectedRows
from rankwise.data.source_rows import SourceRows, numbers_of, overlap_between
from rankwise.data.sources import CHUNK, Reading, open_source
from rankwise.data.unused_report import problems, sentence, unused_columns
from rankwise.errors import DataError
from rankwise.runs.data_report import DataReport, HoldOutFacts, OverlapFacts, TargetFacts, TemplateFacts
from rankwise.runs.pair_facts import PairFacts
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.text.encode import RowEncoder
from rankwise.text.example import Example, ImageRecord

_Usable = tuple[range, ImageRecord | None]
"""The numbers of a row's sequences, and what is known of its image."""


@dataclass(frozen=True)
class Prepared:
    """`trained` and `measured` are numbers of sequences; `trained` holds one as often as a pass sees it."""

    sequences: EncodedRows
    trained: np.ndarray
    measured: np.ndarray
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
        return SelectedRows(self.sequences, self.measured)

    def with_references(self, values: np.ndarray) -> Prepared:
        """The same pairs with the log-probabilities (N, 2) of their answers before training."""
        return replace(self, sequences=replace(self.sequences, references=values))

    def order(self, seed: int) -> BalancedOrder | ReplayOrder | None:
        """Which of `shown_rows` is shown at each position of a training: None where each is shown once in a pass."""
        if self.replay is not None:
            return ReplayOrder(len(self.trained), len(self.replay.numbers), self.replay.share, seed)
        targets, facts = self.sequences.targets, self.data_report.targets
        if facts is None or not facts.balanced or targets is None:
            return None
        return BalancedOrder(targets[self.trained], seed)

    @property
    def widest(self) -> int:
        """Inputs of the longest row; a row of two conversations has those of both."""
        return int(np.concatenate([self.shown_rows.lengths, self.measured_rows.lengths]).max()) - 1

    @property
    def longest(self) -> int:
        """Inputs of the longest sequence that is computed by itself."""
        if self.data_report.pairs is None:
            return self.widest
        sides = [self.sequences.lengths_of_sides(numbers) for numbers in (self.trained, self.measured)]
        return int(np.concatenate(sides).max()) - 1


@dataclass(frozen=True)
class EncodingFacts:
    """How rows are encoded, for the data report."""

    template: TemplateFacts | None = None
    encoder_decoder: bool = False
    """Whether an encoder reads a row's input and a decoder writes its output."""
    processing: ImageProcessing | None = None
    pairs: PairFacts | None = None
    """How pairs are learned, where rows are pairs."""


def prepare_data(
    spec: DataConfig, encoder: RowEncoder | None, tally: Tally, callback: Callback, *,
    model: str | None, facts: EncodingFacts, targets: TargetFacts | None = None,
) -> Prepared:  # fmt: skip
    work = _Preparation(spec, encoder, tally, callback, model, facts, targets)
    trained = [work.read(open_source(spec, source), source.weight) for source in spec.all_sources]
    apart = replace(work, tally=tally.anew())
    to_measure = spec.measured_source
    measured = [apart.read(open_source(spec, to_measure), 1.0)] if to_measure is not None else []
    candidates = [source.candidates(spec) for source in trained]
    for source, chosen in zip(trained, hold_out(candidates, spec), strict=True):
        source.apart = chosen
    rng = np.random.default_rng([spec.seed, 2])
    numbers = np.concatenate([np.empty(0, np.int64), *(source.weighted(rng) for source in trained)])
    held_out = [source.side(source.rows, apart=True) for source in trained]
    numbers_apart = numbers_of([row for rows in (*held_out, *(source.rows for source in measured)) for row in rows])
    overlap = overlap_between(trained, measured) if work.compares else None
    chosen = facts_of(candidates, [source.apart for source in trained], spec)
    data_report = _data_report(work, apart.tally, trained, measured, len(numbers), overlap, chosen)
    sequences = EncodedRows.gathered(work.sequences)
    if targets is not None and targets.balanced and sequences.targets is not None:
        repeats = repeats_of(sequences.targets[numbers], targets.classes)
        data_report = data_report.model_copy(update={"class_repeats": repeats})
    return Prepared(sequences, numbers, numbers_apart, data_report)


@dataclass
class _Preparation:
    spec: DataConfig
    encoder: RowEncoder | None
    tally: Tally
    callback: Callback
    model: str | None
    facts: EncodingFacts
    targets: TargetFacts | None
    sequences: list[EncodedRows] = field(default_factory=list)

    @property
    def limit(self) -> int | None:
        """Tokens of a row at most."""
        return self.encoder.limit if self.encoder is not None else None

    @property
    def compares(self) -> bool:
        return bool(self.spec.held_out) or self.spec.validation is not None

    def read(self, reading: Reading, weight: float) -> SourceRows:
        source = SourceRows(reading, weight)
        rows = 0
        for chunk in reading.chunks():
            self._report_progress(reading, rows)
            rows += len(chunk)
            self._refuse_others(reading, chunk)
            if self.encoder is not None and self.targets is None:  # a language model
                self.tally.unreadable(list_problems(chunk))
                chunk = [row for row in chunk if row[0].labels is None]
            for row in chunk:
                self.tally.read(row)
            for row, usable in zip(chunk, self._encoded(chunk), strict=True):
                if usable is not None:
                    source.add(row, *usable, self.spec)
        self.tally.unreadable(reading.skipped)
        return source

    def _refuse_others(self, reading: Reading, chunk: Sequence[list[Example]]) -> None:
        """Where the model reads texts, it would be trained on the names of image files; and of a pair's answers, what
        is no preference tuning would learn the chosen ones alone, and of tagged words a list of spans."""
        first = chunk[0][0]
        if first.rejected and self.encoder is not None and self.facts.pairs is None:
            raise DataError(f"{reading.source.path}: holds preference pairs. Add --objective preference.")
        if first.tagged is not None and self.encoder is not None and not (self.targets and self.targets.form == "tags"):
            raise DataError(f"{reading.source.path}: holds words with tags. Add --objective token-classification.")
        if first.image is not None and self.encoder is not None and self.facts.processing is None:
            raise DataError(
                f"{reading.source.path}: holds images, and the model {self.model} reads texts. Choose a vision model "
                "with --model, such as dinov2-small."
            )

    def _report_progress(self, reading: Reading, rows: int) -> None:
        share = reading.share
        if rows >= 2 * CHUNK and share:
            self.callback(ProgressUpdate("Reading and encoding", rows, rows / share, "rows"))

    def _encoded(self, chunk: Sequence[list[Example]]) -> list[_Usable | None]:
        """For each row what training can use of it."""
        if self.encoder is None:
            outcomes = [looked_at(row[0]) for row in chunk]
            return [
                (range(0, 0), outcome.image) if self.tally.keep_unencoded(row, outcome.problem) else None
                for row, outcome in zip(chunk, outcomes, strict=True)
            ]
        outcomes = iter(self.encoder.encode([example for row in chunk for example in row]))
        made: list[_Usable | None] = []
        tokens = []
        begin = sum(len(part) for part in self.sequences)
        for row in chunk:
            own = [next(outcomes) for _ in row]
            kept = [sequence for outcome in own for sequence in outcome.sequences]
            kept = kept if self.tally.encoded(own, self.encoder.limit) else []
            numbers = range(begin + len(tokens), begin + len(tokens) + len(kept))
            made.append((numbers, own[0].image) if kept else None)
            tokens += kept
        self.sequences.append(EncodedRows.of(tokens))
        return made


def _data_report(
    work: _Preparation, apart: Tally, sources: Sequence[SourceRows], measured: Sequence[SourceRows], trained: int,
    overlap: OverlapFacts | None, facts: HoldOutFacts | None,
) -> DataReport:  # fmt: skip
    """`apart` counts the rows of the validation source, which are counted nowhere else."""
    tally, spec, encodes = work.tally, work.spec, work.encoder is not None
    readings = [source.reading for source in (*sources, *measured)]
    files = tuple(part_facts(reading, part) for reading in readings for part in reading.parts)
    labels = Labels.together(source.labels for source in sources)
    unused = unused_columns(readings)
    images = [image for source in sources for image in source.images]
    findings = findings_of(images, [name for reading in readings for name in reading.passed_over]) if images else None
    duplicates = findings.duplicates if findings is not None else tally.texts.duplicates()
    repeated = (0, 0) if findings is not None else (len(duplicates.near), len(duplicates.exact))
    tags = tally.tags.facts(encoded=encodes) if tally.tags.words else None
    remarks = (
        *(sentence(column) for column in unused if not column.stops),
        *(warning for reading in readings for warning in reading.warnings()),
        *warnings_of(tally, overlap, *repeated),
        *(findings.warnings if findings is not None else ()),
        *(tags.doubts() if tags is not None else ()),
        *labels.remarks(),
        *labels.without_rows(work.targets.classes if work.targets is not None else ()),
        *labels.never_trained(facts),
        *(f"validation rows: {warning}" for warning in warnings_of(apart, None, 0, 0)),
    )
    fatal = _fatal(work, sources, trained, facts)
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
        duplicates=len(duplicates.exact),
        near_duplicates=len(duplicates.near),
        overlap=overlap,
        licence=strictest(file.licence for file in files),
        recipe=spec.recipe,
        template=None if work.targets is not None else work.facts.template,
        images=findings.facts if findings is not None else None,
        image_processing=work.facts.processing,
        pairs=work.facts.pairs and tally.pairs.facts(work.facts.pairs, tally.used),
        tags=tags,
        targets=work.targets,
        encoder_decoder=work.facts.encoder_decoder,
        unused_columns=unused,
        warnings=remarks,
        fatal=(*fatal, *(problems(readings, unused) if tally.used else ()), *_fatal_of_validation(work, apart)),
        advice=(*advice_on(tally, spec), *advice_on(apart, spec)),
        **counts_of(tally, encodes, work.targets is not None),
    )


def _fatal(work: _Preparation, sources: Sequence[SourceRows], trained: int, facts: HoldOutFacts | None) -> list[str]:
    """Why the training rows must not be trained on."""
    tally, spec = work.tally, work.spec
    name = ", ".join(dict.fromkeys(source.reading.source.path for source in sources))
    remaining = trained if work.encoder is not None else tally.used - (facts.rows if facts is not None else 0)
    fatal = fatal_problems(tally, spec, limit=work.limit, trained=remaining, name=name)
    if spec.group is not None and facts is None and not fatal:
        fatal += [f"{name}: all rows have the same {spec.group} (data.group), so none can become validation rows."]
    return fatal or [problem for source in sources for problem in source.weighed_out()]


def _fatal_of_validation(work: _Preparation, apart: Tally) -> list[str]:
    path = work.spec.validation.path if work.spec.validation is not None else None
    return fatal_problems(apart, work.spec, limit=work.limit, trained=apart.used, name=path) if path else []
