"""Replay: rows of other kinds among a run's own, so that the model goes on doing what it could.

They are rows of the user's, or the base's own answers to general instructions (inference/own_text.py). Which row is
shown where is in rows/encoded/row_order.py. A replay row that is a validation row too is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from math import ceil

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.config.forgetting import DRAWS, ReplayConfig, ReplayDataConfig, replay_rows
from rankwise.config.training import TrainingConfig
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
from rankwise.training.training import Extra, Session


@dataclass(frozen=True)
class ReplayedRows(Extra):
    config: ReplayConfig
    data: DataConfig
    """The settings of the rows that they are replayed among."""
    training: TrainingConfig

    def rows(self, prepared: Prepared, model: LoadedModel, encoding: RowEncoding, session: Session) -> Prepared:
        return self.among(prepared, model, encoding, session.callback)

    def among(self, prepared: Prepared, model: LoadedModel, encoding: RowEncoding, callback: Callback) -> Prepared:
        """The prepared rows with those that are replayed."""
        in_pass = self.config.rows_among(len(prepared.trained))
        if self.config.data is None:
            shown = self._shown(len(prepared.trained) + in_pass)
            draws = min(DRAWS, ceil(shown / len(instructions())))  # no more than are shown of each instruction
            rows, report = own_answers(model, draws, self.data.max_length, callback), None
        else:
            rows, report = self._given_rows(self.config.data, encoding, callback)
        measured = {_content(row) for row in prepared.measured_rows}
        left = EncodedRows.of(row for row in rows if _content(row) not in measured)
        if not len(left):
            raise DataError("every replay row is a validation row too, so none is left. Give other replay rows.")
        facts = _facts(self.config, left, prepared, report).model_copy(update={"left_out": len(rows) - len(left)})
        begin = len(prepared.sequences)
        return replace(
            prepared, sequences=EncodedRows.gathered([prepared.sequences, left]),
            data_report=_reported(prepared.data_report, facts, report),
            replay=Replay(np.arange(begin, begin + len(left)), self.config.share, in_pass),
        )  # fmt: skip

    def _shown(self, in_pass: int) -> int:
        """Replay rows in the whole training."""
        return ceil(self.training.total_steps(in_pass) * self.training.rows_per_step(in_pass) * self.config.share)

    def _given_rows(
        self, config: ReplayDataConfig, encoding: RowEncoding, callback: Callback
    ) -> tuple[SelectedRows, DataReport]:
        try:
            if config.run is not None:
                return _of_run(RunSnapshot.read(config.run), self.data.max_length, encoding, callback)
            prepared = prepare(replay_rows(config, self.data), encoding, callback)
            refuse_fatal(prepared.data_report)
        except (DataError, RunError) as error:
            raise DataError(f"replay rows (training.replay.data): {error}") from None
        return prepared.trained_rows, prepared.data_report


def _of_run(
    run: RunSnapshot, longest: int, encoding: RowEncoding, callback: Callback
) -> tuple[SelectedRows, DataReport]:
    """The rows that a run trained on, but those that are longer than rows may be here."""
    prepared, (files, _) = prepared_again(run, encoding, callback), files_of(run)
    fits = prepared.trained_rows.lengths <= longest
    if not fits.all():
        callback(WarningMessage(
            f"{np.count_nonzero(~fits):,} training rows of run {run.name} are not replayed, because they have more "
            f"than {longest:,} tokens (--max-length)"
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
