"""Turn the rows of files into token sequences, with the model's chat template or a recipe's, and report on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from rankwise.config.base import Config
from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.config.recipe import recipe_named
from rankwise.data.encoded_cache import entries, keep, key_of, recall
from rankwise.data.encoding import Encoding, EncodingFacts, ReadRows, goes_on
from rankwise.data.preparation import Prepared, prepared_of
from rankwise.data.report import Tally
from rankwise.errors import DataError
from rankwise.images.encode import ImageEncoder
from rankwise.runs.data_report import MOST_LISTED, DataReport
from rankwise.runs.manifest import DataFacts, installed_version
from rankwise.runs.records import Callback, silent
from rankwise.runs.row_facts import NewTokenFacts, PairFacts, TargetFacts
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.encode import Encoder, EncoderOf, RowEncoder
from rankwise.text.new_tokens import NewTokens
from rankwise.text.tokenizer import HubTokenizer


class Writing(Protocol):
    """What a model's rows are encoded and counted with."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def targets(self) -> TargetFacts | None:
        """What a classifier predicts for a row."""
        ...

    def by(self, spec: DataConfig) -> Self:
        """The same with what the settings of the data change."""
        ...

    def encoder(self, spec: DataConfig) -> RowEncoder: ...

    def tally(self) -> Tally: ...

    @property
    def facts(self) -> EncodingFacts:
        """How rows are encoded, for the data report."""
        ...

    @property
    def identity(self) -> str:
        """Whatever may change an encoded row, beside the settings of the data."""
        ...


@dataclass(frozen=True)
class TextWriting:
    """Texts by a tokenizer and a chat template. `context` is the model's longest text."""

    tokenizer: HubTokenizer
    template: ChatTemplate
    name: str
    context: int | None
    encoder_of: EncoderOf = Encoder
    """An objective's way to encode rows."""
    guessed: bool = False
    """Nobody named this model; it was here."""
    targets: TargetFacts | None = None
    pairs: PairFacts | None = None
    """How pairs are learned, where rows are pairs of answers."""
    encoder_decoder: bool = False
    """Whether an encoder reads a row's input and a decoder writes its output."""

    def by(self, spec: DataConfig) -> TextWriting:
        """With the template of the recipe, where there is one, and asked to reason where rows have reasoning."""
        own = self.template
        if spec.recipe is not None:
            own = ChatTemplate.of_recipe(self.tokenizer, recipe_named(spec.recipe))
        return replace(self, template=own.with_reasoning(spec.reasoning))

    def encoder(self, spec: DataConfig) -> RowEncoder:
        limit = min(spec.max_length, self.context or spec.max_length)
        return self.encoder_of(self.template, self.tokenizer, spec, limit)

    def tally(self) -> Tally:
        tokenizer = self.tokenizer
        start = tokenizer.encode(tokenizer.start) if tokenizer.start else []
        return Tally(
            known=frozenset(map(str, tokenizer.hub.get_added_vocab())),
            start_id=start[0] if len(start) == 1 else tokenizer.hub.bos_token_id,
            guards=self.template,
            guessed=self.guessed,
        )

    @property
    def facts(self) -> EncodingFacts:
        if self.encoder_decoder:
            return EncodingFacts(encoder_decoder=True)
        return EncodingFacts(template=self.template.facts, pairs=self.pairs)

    @property
    def identity(self) -> str:
        facts = f"{_written(self.targets)} {_written(self.pairs)}"
        return f"{self.tokenizer.identity} {self.template.identity} {self.guessed} {facts}"


@dataclass(frozen=True)
class ImageWriting:
    """Images by the values of a model's own preprocessor."""

    name: str
    processing: ImageProcessing
    targets: TargetFacts | None

    def by(self, spec: DataConfig) -> ImageWriting:
        return self

    def encoder(self, spec: DataConfig) -> ImageEncoder:
        return ImageEncoder(self.processing, self.targets)

    def tally(self) -> Tally:
        return Tally()

    @property
    def facts(self) -> EncodingFacts:
        return EncodingFacts(processing=self.processing)

    @property
    def identity(self) -> str:
        libraries = " ".join(map(installed_version, ("torchvision", "pillow")))
        return f"{self.processing.model_dump_json()} {libraries} {_written(self.targets)}"


def _written(facts: Config | None) -> str | None:
    return None if facts is None else facts.model_dump_json()


def prepare(
    spec: DataConfig, writing: Writing, callback: Callback, check_stop: Callable[[], None] = goes_on
) -> Prepared:
    """Encoded rows, from the cache if these were encoded before. What is wrong with them stands in the data report."""
    writing = writing.by(spec)
    work = _work(spec, writing, callback, check_stop)
    assert work.encoder is not None, "rows are encoded with one"
    identity = f"{type(work.encoder).__name__} {writing.identity}"
    key = key_of(spec, work.encoder, identity, writing.name)
    prepared = recall(key)
    if prepared is None:
        every, prepared = _encoded(work, entries())
        if key_of(spec, work.encoder, identity, writing.name) == key:  # else somebody wrote into a file meanwhile
            keep(key, prepared, every.writer, callback)
            prepared = recall(key) or prepared  # so that they lie on the disk once
    return with_token_counts(prepared, writing)


def with_token_counts(prepared: Prepared, writing: Writing) -> Prepared:
    """The same rows, with how often new tokens occur among those that are trained on."""
    new = writing.tokenizer.new if isinstance(writing, TextWriting) else NewTokens()
    if not new.ids and not new.existing:
        return prepared
    numbers = np.fromiter(new.ids.values(), np.int64)
    times = np.zeros(len(numbers), np.int64)
    for row in prepared.trained_rows:
        times += (np.asarray(row.ids)[:, None] == numbers).sum(0)
    counts = dict(zip(new.ids, times.tolist(), strict=True))
    facts, report = NewTokenFacts(counts=counts, existing=tuple(new.existing)), prepared.data_report
    changes = {"new_tokens": facts, "warnings": (*report.warnings, *facts.warnings)}
    return replace(prepared, data_report=report.model_copy(update=changes))


def _work(spec: DataConfig, writing: Writing, callback: Callback, check_stop: Callable[[], None] = goes_on) -> Encoding:
    tally, name = writing.tally(), writing.name
    return Encoding(
        spec, writing.encoder(spec), tally, callback, name, writing.facts, writing.targets, check_stop
    )  # fmt: skip


def _encoded(work: Encoding, folder: Path | None) -> tuple[ReadRows, Prepared]:
    try:
        every = work.read(folder)
        return every, prepared_of(work, every)
    except OSError:
        if folder is None:
            raise
    return _encoded(work, None)  # the disk is full


def count_only(spec: DataConfig, callback: Callback) -> DataReport:
    """What can be said of rows without any tokenizer."""
    work = Encoding(spec, None, Tally(), callback, None, EncodingFacts(), None)
    return prepared_of(work, work.read(None)).data_report


def checked(spec: DataConfig, writing: Writing, folder: Path) -> DataReport:
    """The data report alone, which leaves nothing in the cache. What takes room lies in the folder without a name."""
    _, prepared = _encoded(_work(spec, writing.by(spec), silent), folder)
    return prepared.data_report


def refuse_fatal(data_report: DataReport, *, trains: bool = True) -> None:
    """Rows that are only measured may mean what they like."""
    doubts = [doubt.refusal for doubt in data_report.doubts if not trains]
    if fatal := [problem for problem in data_report.fatal if problem not in doubts]:
        raise DataError("\n".join([*fatal, *data_report.advice]))


def facts_of(prepared: Prepared) -> DataFacts:
    """What the manifest keeps beside the data report."""
    data_report = prepared.data_report
    trained = prepared.trained_rows
    hashes = [file.sha256 for file in data_report.files]
    return DataFacts(
        path=", ".join(file.name for file in data_report.files),
        sha256=hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest(),
        format=data_report.format,
        rows=data_report.rows,
        training_sequences=len(trained),
        validation_sequences=len(prepared.measured),
        rows_too_long=data_report.skipped_why.get("too long", 0),
        tokens=trained.tokens,
        loss_tokens=trained.loss_count,
    )


def summary_lines(data_report: DataReport) -> Sequence[str]:
    """The data report in a few lines, printed before the training."""
    lines = [data_report.hold_out.describe()] if data_report.hold_out is not None else []
    if data_report.targets is not None:
        lines.append(data_report.targets.describe())
        lines += [data_report.tags.describe()] if data_report.tags is not None else []
        lines += [data_report.sampling] if data_report.sampling is not None else []
    else:
        lines += [data_report.pairs.describe()] if data_report.pairs is not None else []
        ended, sequences = data_report.eos_in_loss, data_report.sequences
        lines.append(f"the end token is in the loss in {ended:,} of {sequences:,} sequences")
    lines += [data_report.new_tokens.describe()] if data_report.new_tokens is not None else []
    if data_report.skipped:
        why = ", ".join(f"{count:,} {reason}" for reason, count in data_report.skipped_why.items())
        listed = "them" if data_report.skipped <= MOST_LISTED else f"the first {MOST_LISTED}"
        lines.append(
            f"{data_report.skipped:,} of {data_report.rows:,} rows are left out: {why}; data_report.json lists {listed}"
        )
    if (apart := data_report.validation) is not None and apart.skipped:
        why = ", ".join(f"{count:,} {reason}" for reason, count in apart.skipped_why.items())
        lines.append(
            f"{apart.skipped:,} of {apart.rows:,} validation rows are left out: {why}; data_report.json lists why"
        )
    if data_report.truncated:
        lines.append(f"{data_report.truncated:,} rows are cut or split to fit")
    lines += [f"{file.name}: {file.layout.describe()}" for file in data_report.files if file.layout is not None]
    return [*lines, f"licence of the data: {data_report.licence}"]
