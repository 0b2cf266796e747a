"""Replay: rows of other kinds among a run's own, so that the model goes on doing what it could.

They are rows of the user's, or the base's own answers to general instructions (inference/own_text.py). Which row is
shown where is in rows/encoded/row_order.py. A replay row that is a validation row too is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from math import ceil

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.experiment import Experiment
from rankwise.config.forgetting import DRAWS, ReplayConfig, ReplayDataConfig, replay_rows
from rankwise.errors import DataError, RunError
from rankwise.evaluation.validation_rows import files_of, prepared_again
from rankwise.inference.own_text import own_answers
from rankwise.rows.encoded.row_order import Replay
from rankwise.rows.encoded.sequences import EncodedRows, SelectedRows
from rankwise.rows.files.licences import strictest
from rankwise.rows.instructions import instructions
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.text.outcome import RowEncoding
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, WarningMessage
from rankwise.runs.row_facts import ReplayFacts
from rankwise.runs.snapshot import RunSnapshot


def with_replay(
    prepared: Prepared, experiment: Experiment, model: LoadedModel, row_encoding: RowEncoding, callback: Callback
) -> Prepared:
    """Add the rows that are replayed to the prepared ones, which are returned as they are where there is no replay.
    `model` must be the base, with the template that the rows are written with."""
    config = experiment.training.replay
    if config is None:
        return prepared
    in_pass = config.rows_among(len(prepared.trained))
    if config.data is None:
        shown = _shown(experiment, len(prepared.trained) + in_pass, config)
        rows, report = _answers(experiment, model, shown, callback), None
    else:
        rows, report = _given_rows(experiment, config.data, row_encoding, callback)
    measured = {_content(row) for row in prepared.measured_rows}
    left = EncodedRows.of(row for row in rows if _content(row) not in measured)
    if not len(left):
        raise DataError("every replay row is a validation row too, so none is left. Give other replay rows.")
    facts = _facts(config, left, prepared, report).model_copy(update={"left_out": len(rows) - len(left)})
    begin = len(prepared.sequences)
    return replace(
        prepared, sequences=EncodedRows.gathered([prepared.sequences, left]),
        data_report=_reported(prepared.data_report, facts, report),
        replay=Replay(np.arange(begin, begin + len(left)), config.share, in_pass),
    )  # fmt: skip


def _shown(experiment: Experiment, in_pass: int, config: ReplayConfig) -> int:
    """Replay rows in the whole training."""
    training = experiment.training
    return ceil(training.total_steps(in_pass) * training.rows_per_step(in_pass) * config.share)


def _answers(experiment: Experiment, model: LoadedModel, shown: int, callback: Callback) -> list[Tokens]:
    """No more than are shown of each instruction."""
    draws = min(DRAWS, ceil(shown / len(instructions())))
    return own_answers(model, draws, experiment.data.max_length, callback)


def _given_rows(
    experiment: Experiment, config: ReplayDataConfig, row_encoding: RowEncoding, callback: Callback
) -> tuple[SelectedRows, DataReport]:
    try:
        if config.run is not None:
            return _of_run(RunSnapshot.read(config.run), experiment, row_encoding, callback)
        prepared = prepare(replay_rows(config, experiment.data), row_encoding, callback)
        refuse_fatal(prepared.data_report)
    except (DataError, RunError) as error:
        raise DataError(f"replay rows (training.replay.data): {error}") from None
    return prepared.trained_rows, prepared.data_report


def _of_run(
    run: RunSnapshot, experiment: Experiment, row_encoding: RowEncoding, callback: Callback
) -> tuple[SelectedRows, DataReport]:
    """The rows that a run trained on, but those that are longer than rows may be here."""
    prepared, (files, _) = prepared_again(run, row_encoding, callback), files_of(run)
    fits = prepared.trained_rows.lengths <= experiment.data.max_length
    if not fits.all():
        callback(WarningMessage(
            f"{np.count_nonzero(~fits):,} training rows of run {run.name} are not replayed, because they have more "
            f"than {experiment.data.max_length:,} tokens (--max-length)"
        ))  # fmt: skip
    report = prepared.data_report.model_copy(update={"files": tuple(files)})
    return SelectedRows(prepared.sequences, prepared.trained[fits]), report


def _content(row: Tokens) -> bytes:
    """What is learned of a row, and what it is learned after."""
    return np.asarray(row.ids, np.int64).tobytes() + np.asarray(row.loss_mask, np.bool_).tobytes()


def _facts(config: ReplayConfig, rows: EncodedRows, prepared: Prepared, report: DataReport | None) -> ReplayFacts:
    every, in_pass = SelectedRows(rows, np.arange(len(rows))), config.rows_among(len(prepared.trained))
    learned = every.loss_count * in_pass / len(rows)
    of_run = "" if config.data is None or config.data.run is None else f'run "{config.data.run}": '
    source = f"the base model's own answers to {len(instructions())} general instructions"
    return ReplayFacts(
        source=source if report is None else of_run + ", ".join(file.name for file in report.files),
        sha256=sha256(b"".join(_digests(rows))).hexdigest(),
        origins=() if report is None else tuple(file.sha256 for file in report.files),
        share=config.share, rows=len(rows), tokens=every.tokens, loss_tokens=every.loss_count, rows_in_pass=in_pass,
        loss_share=round(learned / (learned + prepared.trained_rows.loss_count), 4),
    )  # fmt: skip


def _digests(rows: EncodedRows) -> Iterable[bytes]:
    return (sha256(_content(row)).digest() for row in rows)


def _reported(prepared: DataReport, facts: ReplayFacts, report: DataReport | None) -> DataReport:
    if report is None:
        return prepared.model_copy(update={"replay": facts})
    of_tokens = () if report.new_tokens is None else report.new_tokens.warnings  # these are about the own rows
    others = (f"replay rows: {warning}" for warning in report.warnings if warning not in of_tokens)
    warnings = (*prepared.warnings, *others)
    licence = strictest((prepared.licence, report.licence))
    return prepared.model_copy(update={"replay": facts, "warnings": warnings, "licence": licence})
