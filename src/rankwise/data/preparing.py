"""Turn the rows of files into token sequences, with the model's chat template or a recipe's, and report on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from rankwise.config.data import DataConfig
from rankwise.data.encoded_cache import entries, keep, key_of, recall
from rankwise.data.encoding import Encoding, EncodingFacts, ReadRows, goes_on
from rankwise.data.preparation import Prepared, prepared_of
from rankwise.data.report import Tally
from rankwise.errors import DataError
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.text.outcome import RowEncoder


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

    def counted(self, prepared: Prepared) -> Prepared:
        """The same rows, with what is counted in those that are trained on."""
        ...

    @property
    def identity(self) -> str:
        """Whatever may change an encoded row, beside the settings of the data."""
        ...


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
    return writing.counted(prepared)


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


def checked(spec: DataConfig, writing: Writing, folder: Path) -> DataReport:
    """The data report alone, which leaves nothing in the cache. What takes room lies in the folder without a name."""
    _, prepared = _encoded(_work(spec, writing.by(spec), silent), folder)
    return prepared.data_report


def refuse_fatal(data_report: DataReport, *, trains: bool = True) -> None:
    """Rows that are only measured may mean what they like."""
    doubts = [doubt.refusal for doubt in data_report.doubts if not trains]
    if fatal := [problem for problem in data_report.fatal if problem not in doubts]:
        raise DataError("\n".join([*fatal, *data_report.advice]))
