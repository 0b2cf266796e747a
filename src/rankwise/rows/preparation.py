"""The rows that training reads of all that were encoded, and the data report on them.

Which rows are held out (hold_out.py) and how often each is seen in a pass is decided
here. Files, counts, labels, images and checks give the report their fields.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rankwise.rows.encoded.row_order import BalancedOrder, Replay, ReplayOrder, repeats_of
from rankwise.rows.encoded.sequences import EncodedRows, SelectedRows
from rankwise.rows.files.hub import Part
from rankwise.rows.files.licences import UNKNOWN, find_licence, normalised, strictest
from rankwise.rows.forms.labels import Labels
from rankwise.rows.forms.proposals import literal_breaks
from rankwise.rows.hold_out import MOST_LABELS, facts_of, hold_out, overlap_between
from rankwise.rows.reading import CountedSources, Encoding, ReadRows, compares
from rankwise.rows.report.image_report import Findings, findings_of
from rankwise.rows.report.raw_rows import RawReport, problems, sentences, unused_columns
from rankwise.rows.report.relations import SURVEYS
from rankwise.rows.report.report import advice_on, counts_of, fatal_problems, left_out, skips_of, warnings_of
from rankwise.runs.data_report import DataReport, OverlapFacts, PartFacts, ValidationFacts
from rankwise.runs.row_facts import Doubt, HoldOutFacts, TagFacts, UnusedColumn

MOST_ROW_HASHES = 500_000
"""Rows of more are not hashed one by one: the report would be too large to be read."""


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
    trained, measured = every.trained.sources, every.validation.sources
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
    data_report = report_on(work, every, len(numbers), chosen, overlap)
    if evened and "targets" in sequences.columns:
        repeats = repeats_of(sequences.columns["targets"][numbers], evened)
        data_report = data_report.model_copy(update={"class_repeats": repeats})
    return Prepared(sequences, numbers, apart, data_report)


def report_on(
    work: Encoding, every: ReadRows, trained: int, held_out: HoldOutFacts | None, overlap: OverlapFacts | None
) -> DataReport:
    """`trained` counts the sequences of a pass."""
    own, apart, spec, encodes = every.trained, every.validation, work.config, work.encoder is not None
    found = _Findings.of(work, every, held_out, overlap)
    fatal = (*_fatal(work, own, trained, held_out), *_fatal_validation(work, apart))
    fatal += found.stops if own.tally.used else ()
    return DataReport(
        model=work.model, recipe=spec.recipe, image_processing=work.facts.processing,
        validation_rows=(held_out.rows if held_out is not None else 0) or apart.tally.used,
        validation=_validation_facts(apart, encodes=encodes) if spec.validation is not None else None,
        warnings=tuple(_warnings(work, every, found, complete=not fatal)), fatal=fatal,
        advice=(*advice_on(own.tally, spec), *advice_on(apart.tally, spec)),
        **found.fields, **_file_fields(found.raw, hashed=own.tally.rows + apart.tally.rows <= MOST_ROW_HASHES),
        **(every.answers.facts if every.answers is not None else {}),
        **work.facts.learned.reported(own.tally.pairs.counted(own.tally.used)),
        **counts_of(own.tally, encodes, work.facts),
    )  # fmt: skip


@dataclass(frozen=True)
class _Findings:
    """What all training rows together show, and the raw rows of all files."""

    raw: list[RawReport]
    labels: Labels
    unused: tuple[UnusedColumn, ...]
    doubts: list[Doubt]
    images: Findings | None
    """None where rows are texts, as `tags` where their words have none."""
    tags: TagFacts | None
    repeats: tuple[int, int]
    """Rows that repeat an earlier one, and those that nearly do."""
    held_out: HoldOutFacts | None
    overlap: OverlapFacts | None

    @classmethod
    def of(
        cls, work: Encoding, every: ReadRows, held_out: HoldOutFacts | None, overlap: OverlapFacts | None
    ) -> _Findings:
        own, tally, labels = every.trained, every.trained.tally, every.trained.labels
        raw, images = [*own.raw, *every.validation.raw], [image for source in own.sources for image in source.images]
        passed_over = [name for report in raw for name in report.reading.passed_over]
        findings = findings_of(images, passed_over) if images else None
        return cls(
            raw, labels, unused_columns(raw), held_out=held_out, overlap=overlap, images=findings,
            doubts=tally.meaning.doubts(labels, work.facts.learned, SURVEYS, work.config.accept),
            tags=tally.tags.facts(encoded=work.encoder is not None) if tally.tags.words else None,
            repeats=(tally.texts.repeats() if findings is None else findings.duplicates).counts,
        )  # fmt: skip

    @property
    def stops(self) -> tuple[str, ...]:
        """Why training stops, beside rows that cannot be used."""
        return (*(doubt.refusal for doubt in self.doubts if doubt.stops), *problems(self.raw, self.unused))

    @property
    def fields(self) -> dict[str, Any]:
        counts = self.labels.counts
        return {
            "labels": dict(counts.most_common(MOST_LABELS)) if self.labels else None,
            "distinct_labels": len(counts) if self.labels else None,
            "unused_columns": self.unused, "doubts": tuple(self.doubts), "tags": self.tags,
            "images": self.images.facts if self.images is not None else None,
            "duplicates": self.repeats[0], "near_duplicates": self.repeats[1],
            "hold_out": self.held_out, "overlap": self.overlap,
        }  # fmt: skip


def _warnings(work: Encoding, every: ReadRows, findings: _Findings, *, complete: bool) -> Iterator[str]:
    """`complete`: nothing stops the training, so that rows that are left out are worth a word."""
    spec, learned, own, apart = work.config, work.facts.learned, every.trained.tally, every.validation.tally
    yield from literal_breaks(spec.all_sources, spec.system)
    yield from left_out(own, spec) if complete else ()
    yield from sentences(findings.unused)
    for report in findings.raw:
        yield from report.warnings()
    yield from warnings_of(own, findings.overlap, findings.repeats if findings.images is None else (0, 0))
    yield from findings.images.warnings if findings.images is not None else ()
    yield from (doubt.text for doubt in findings.doubts if not doubt.stops)
    yield from findings.tags.doubts() if findings.tags is not None else ()
    yield from findings.labels.remarks()
    yield from findings.labels.without_rows(learned.names)
    yield from findings.labels.never_trained(findings.held_out)
    yield from (f"validation rows: {warning}" for warning in warnings_of(apart, None, (0, 0)))
    for doubt in apart.meaning.doubts(every.validation.labels, learned, SURVEYS):
        yield f"validation rows: {doubt.text}"
    yield from (f"validation {warning}" for warning in left_out(apart, spec) if complete)


def _fatal(work: Encoding, trained_rows: CountedSources, trained: int, held_out: HoldOutFacts | None) -> list[str]:
    """Why the training rows must not be trained on."""
    spec, tally = work.config, trained_rows.tally
    name = ", ".join(dict.fromkeys(report.reading.source.path for report in trained_rows.raw))
    remaining = trained if work.encoder is not None else tally.used - (held_out.rows if held_out is not None else 0)
    fatal = fatal_problems(tally, spec, limit=work.limit, trained=remaining, name=name)
    if spec.group is not None and held_out is None and not fatal:
        fatal += [f"{name}: all rows have the same {spec.group} (data.group), so none can become validation rows."]
    return fatal or [problem for source in trained_rows.sources for problem in source.weighed_out()]


def _fatal_validation(work: Encoding, validation: CountedSources) -> list[str]:
    path, used = work.config.validation and work.config.validation.path, validation.tally.used
    return fatal_problems(validation.tally, work.config, limit=work.limit, trained=used, name=path) if path else []


def _validation_facts(validation: CountedSources, *, encodes: bool) -> ValidationFacts:
    tally = validation.tally
    return ValidationFacts(
        **skips_of(tally), truncated=tally.truncated if encodes else None,
        loss_tokens=tally.loss_tokens if encodes else None,
    )  # fmt: skip


def _file_fields(raw: Sequence[RawReport], *, hashed: bool) -> dict[str, Any]:
    files = tuple(_part_facts(report, part, hashed=hashed) for report in raw for part in report.reading.parts)
    return {
        "files": files, "format": ", ".join(dict.fromkeys(file.format for file in files if file.format)),
        "left_aside": tuple(name for report in raw for name in report.reading.left_aside),
        "licence": strictest(file.licence for file in files),
    }  # fmt: skip


def _part_facts(report: RawReport, part: Part, *, hashed: bool) -> PartFacts:
    stated = report.reading.source.licence or part.licence
    found = find_licence(part.folder) if stated is None and part.folder is not None else UNKNOWN
    licence = normalised(stated) if stated is not None else found
    return PartFacts(
        name=part.name, sha256=part.identity(), format=part.format, rows=part.rows, licence=licence, layout=part.layout,
        row_hashes=b64encode(report.counts[part.name].hashes).decode() if hashed else "",
    )  # fmt: skip
