"""Encoded rows (encoding.py) into what training reads, and the report on them.

Which rows are held out (hold_out.py) and how often each is seen in a pass is decided afterwards, so every row is
encoded once. Without a tokenizer everything is counted that can be counted without tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.data.balanced import BalancedOrder, repeats_of
from rankwise.data.encoding import Encoding, ReadRows, compares
from rankwise.data.hold_out import MOST_LABELS, facts_of, hold_out
from rankwise.data.image_report import findings_of
from rankwise.data.labels import Labels
from rankwise.data.licences import strictest
from rankwise.data.proposals import literal_breaks
from rankwise.data.replay import Replay, ReplayOrder
from rankwise.data.report import Tally, advice_on, fatal_problems, left_out, warnings_of
from rankwise.data.report_facts import counts_of, part_facts, validation_of
from rankwise.data.sequences import EncodedRows, SelectedRows
from rankwise.data.source_rows import SourceRows, overlap_between
from rankwise.data.unused_report import problems, sentence, unused_columns
from rankwise.runs.data_report import DataReport, HoldOutFacts, OverlapFacts


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


def prepared_of(work: Encoding, every: ReadRows) -> Prepared:
    """The rows that were read, and the report on them."""
    spec, targets = work.spec, work.targets
    sequences = every.writer.rows()
    trained, measured = every.trained, every.measured
    candidates = [source.candidates(every.questions(spec)) for source in trained]
    for source, chosen in zip(trained, hold_out(candidates, spec), strict=True):
        source.apart = chosen
    for source in measured:
        source.apart = np.ones(len(source), bool)
    rng = np.random.default_rng([spec.seed, 2])
    none = np.empty(0, np.int64)
    numbers = np.concatenate([none, *(source.weighted(rng) for source in trained)])
    apart = np.concatenate([none, *(source.numbers(source.rows(apart=True)) for source in (*trained, *measured))])
    chosen = facts_of(candidates, [source.apart for source in trained], spec)
    compared = compares(spec) and (chosen is not None or bool(measured))
    overlap = overlap_between(every.prompts, trained, measured) if compared else None
    data_report = _data_report(work, every, len(numbers), overlap, chosen)
    if targets is not None and targets.balanced and sequences.targets is not None:
        repeats = repeats_of(sequences.targets[numbers], targets.classes)
        data_report = data_report.model_copy(update={"class_repeats": repeats})
    return Prepared(sequences, numbers, apart, data_report)


def _data_report(
    work: Encoding, every: ReadRows, trained: int, overlap: OverlapFacts | None, facts: HoldOutFacts | None
) -> DataReport:
    tally, apart, spec, targets, sources = every.tally, every.apart, work.spec, work.targets, every.trained
    readings = [source.reading for source in (*sources, *every.measured)]
    files = tuple(part_facts(reading, part) for reading in readings for part in reading.parts)
    encodes, labels = work.encoder is not None, Labels.together(source.labels for source in sources)
    unused = unused_columns(readings)
    images = [image for source in sources for image in source.images]
    findings = findings_of(images, [name for reading in readings for name in reading.passed_over]) if images else None
    exact, near = tally.texts.repeats().counts if findings is None else findings.copies
    tags = tally.tags.facts(encoded=encodes) if tally.tags.words else None
    doubts = tally.meaning.doubts(labels, targets, spec.accept)
    of_measured = Labels.together(source.labels for source in every.measured)
    fatal = (*_fatal(work, tally, sources, trained, facts), *_fatal_of_validation(work, apart))
    fatal += (*(doubt.refusal for doubt in doubts if doubt.stops), *problems(readings, unused)) if tally.used else ()
    remarks = (
        *literal_breaks(spec.all_sources, spec.system),
        *(left_out(tally, spec) if not fatal else ()),
        *(sentence(column) for column in unused if not column.stops),
        *(warning for reading in readings for warning in reading.warnings()),
        *warnings_of(tally, overlap, *((near, exact) if findings is None else (0, 0))),
        *(findings.warnings if findings is not None else ()),
        *(doubt.text for doubt in doubts if not doubt.stops),
        *(tags.doubts() if tags is not None else ()),
        *labels.remarks(),
        *labels.without_rows(targets.classes if targets is not None else ()),
        *labels.never_trained(facts),
        *(f"validation rows: {warning}" for warning in warnings_of(apart, None, 0, 0)),
        *(f"validation rows: {doubt.text}" for doubt in apart.meaning.doubts(of_measured, targets)),
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
        duplicates=exact,
        near_duplicates=near,
        overlap=overlap,
        licence=strictest(file.licence for file in files),
        recipe=spec.recipe,
        template=None if targets is not None else work.facts.template,
        images=findings.facts if findings is not None else None,
        image_processing=work.facts.processing,
        pairs=work.facts.pairs and tally.pairs.facts(work.facts.pairs, tally.used),
        tags=tags,
        targets=targets,
        encoder_decoder=work.facts.encoder_decoder,
        unused_columns=unused,
        doubts=tuple(doubts),
        warnings=remarks,
        fatal=fatal,
        advice=(*advice_on(tally, spec), *advice_on(apart, spec)),
        **counts_of(tally, encodes, targets is not None),
    )


def _fatal(
    work: Encoding, tally: Tally, sources: Sequence[SourceRows], trained: int, facts: HoldOutFacts | None
) -> list[str]:
    """Why the training rows must not be trained on."""
    spec = work.spec
    name = ", ".join(dict.fromkeys(source.reading.source.path for source in sources))
    remaining = trained if work.encoder is not None else tally.used - (facts.rows if facts is not None else 0)
    fatal = fatal_problems(tally, spec, limit=work.limit, trained=remaining, name=name)
    if spec.group is not None and facts is None and not fatal:
        fatal += [f"{name}: all rows have the same {spec.group} (data.group), so none can become validation rows."]
    return fatal or [problem for source in sources for problem in source.weighed_out()]


def _fatal_of_validation(work: Encoding, apart: Tally) -> list[str]:
    path = work.spec.validation.path if work.spec.validation is not None else None
    return fatal_problems(apart, work.spec, limit=work.limit, trained=apart.used, name=path) if path else []
