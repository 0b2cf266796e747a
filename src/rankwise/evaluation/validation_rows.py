"""Rows for measuring the loss of a finished run: its held-out rows, its validation data, or other rows.

They are read and encoded as in training, with the chat template stored in the run. Files that the run was trained on
are refused, and so are held-out rows if a file has changed since, because they can no longer be identified.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import COLUMN_SETTINGS, DataConfig, column_text
from rankwise.config.objectives import OBJECTIVES
from rankwise.errors import DataError, some
from rankwise.evaluation.requests import bytes_of
from rankwise.methods.artifact import Artifact
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.forms.formats import ANSWER_FIELDS, form_of
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.sources import open_source, raw_records
from rankwise.rows.text.example import Database, Example
from rankwise.rows.text.outcome import RowEncoding
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.data_report import PartFacts
from rankwise.runs.records import Callback, WarningMessage
from rankwise.runs.snapshot import RunSnapshot

OF_TRAINING = (
    "path", "sources", "validation", "held_out", "held_out_order", "group", "split", "subset", "revision", "rows",
    "licence", "packing",
)  # fmt: skip
"""Settings that only apply to the training data."""
GIVE_OTHER_ROWS = " Give rows that it was not trained on: --data FILE."


@dataclass(frozen=True)
class Measurable:
    documents: Sequence[Tokens]
    about: str
    left_out: int = 0
    """Rows of the file that are not measured, such as those that are too long."""
    is_run_validation: bool = False
    """Whether the run itself used these rows for validation during training."""
    config: DataConfig | None = None
    """How they are read."""

    def spread(self, most: int) -> Measurable:
        """Select at most so many rows, evenly spread."""
        many = len(self.documents)
        if many <= most:
            return self
        of = self.about if self.about.startswith("the ") else f"the {many:,} sequences of {self.about}"
        return replace(self, documents=evenly(self.documents, most), about=f"{most:,} of {of}")


def rows_to_measure(artifact: Artifact, model: LoadedModel, data: str | None, callback: Callback) -> Measurable:
    """Read the rows from `data` (a file, folder or hub data set), or without it the run's own. `model` has the run's
    template."""
    objective, run = artifact.objective, artifact.run
    writing = objective.rows.encoding(model)
    if run is None:
        return _of_folder(artifact, data, writing, callback)
    data_config = run.experiment.data
    if data is None:
        return _validation_rows(run, data_config, writing, callback)
    if data_config.validation is not None and data == data_config.validation.path:
        refuse_training_files(run, {file.sha256: file.name for file in files_of(run)[1]})
        return _validation_rows(run, data_config, writing, callback)
    return _other_rows(run, data_config, data, writing, callback)


def _of_folder(artifact: Artifact, data: str | None, row_encoding: RowEncoding, callback: Callback) -> Measurable:
    """Read rows for an adapter folder, which holds none itself. Files that it was trained on are refused, if its data
    report lists them without validation files of their own."""
    if data is None:
        raise DataError(f"{artifact.folder} has no validation rows.{GIVE_OTHER_ROWS}")
    data_config, data_report = DataConfig(path=data, held_out=0), artifact.data_report
    prepared = prepare(OBJECTIVES[artifact.objective.name].rows(data_config), row_encoding, callback)
    refuse_fatal(prepared.data_report, trains=False)
    if data_report is not None and data_report.validation is None:
        _refuse_trained({file.sha256: file.name for file in data_report.files},
                        {file.sha256: file.name for file in prepared.data_report.files})  # fmt: skip
    return _all_rows(prepared, data_config, callback)


def _other_rows(
    run: RunSnapshot, data_config: DataConfig, data: str, row_encoding: RowEncoding, callback: Callback
) -> Measurable:
    """Read other rows with the run's settings, and by its columns where they have them."""
    others = (*OF_TRAINING, "format", *COLUMN_SETTINGS)
    config = {name: getattr(data_config, name) for name in data_config.model_fields_set if name not in others}
    config |= columns_of_run(run, DataConfig(path=data, held_out=0), callback)
    data_config = OBJECTIVES[run.experiment.objective].rows(DataConfig(**config, path=data, held_out=0))
    prepared = prepare(data_config, row_encoding, callback)
    refuse_fatal(prepared.data_report, trains=False)
    refuse_training_files(run, {file.sha256: file.name for file in prepared.data_report.files})
    return _all_rows(prepared, data_config, callback)


def columns_of_run(run: RunSnapshot, data: DataConfig, callback: Callback) -> dict[str, Any]:
    """The settings by which the run read the columns of its rows; none, and a warning, where `data` has none of the
    columns that its prompt names and is of a known format."""
    shared, source = run.experiment.data.shared, data.all_sources[0]
    row = next((row for part in open_source(data, source).parts for _, row in raw_records(part)), None)
    if not isinstance(row, dict):
        return shared
    named = {name for key in ("prompt", "completion") for name in column_text(shared.get(key) or "").columns}
    refuse_without_answers(shared, row, source.path)
    if not named:
        return shared if set(shared.get("columns", {}).values()) <= row.keys() else shared | {"columns": {}}
    if named & row.keys() or (form := form_of(row)) is None:
        return shared
    callback(WarningMessage(
        f"{source.path} has none of the columns that the prompt of the run names ({some(sorted(named))}), so its rows "
        f"are read as rows in {form} format"
    ))  # fmt: skip
    return {}


def refuse_without_answers(shared: Mapping[str, Any], row: Mapping[str, Any], path: str) -> None:
    """DataError where a row has the columns of the run's prompt, and not those of its answers."""
    columns, fields = shared.get("columns", {}), {*ANSWER_FIELDS, "output", "response", "label"}
    wanted = {
        *column_text(shared.get("completion") or "").columns,
        *(columns[name] for name in columns.keys() & fields),
    }
    prompt = {*column_text(shared.get("prompt") or "").columns, *columns.values()} - wanted
    if prompt and prompt <= row.keys() and not wanted <= row.keys():
        raise DataError(
            f"{path}: has no column {some(map(repr, sorted(wanted - row.keys())))}, where the run's rows have their "
            "answers. Give rows with answers, or use rankwise predict for rows without."
        )


def databases_in(config: DataConfig, row_encoding: RowEncoding) -> dict[bytes, Database]:
    """The databases of rows by the ids that each is encoded to. Rows are read again where the first ones have any."""
    encoder, found = row_encoding.by(config).encoder(config), dict[bytes, Database]()
    for source in filter(None, (*config.all_sources, config.measured_source)):
        for chunk in open_source(config, source).chunks():
            examples = [example for row in chunk for example in row if example.database is not None]
            if not examples:
                break
            for outcome in encoder.encode(examples):
                assert outcome.example.database is not None, "the others are left out"
                found |= {bytes_of(row): outcome.example.database for row in outcome.sequences}
    return found


def _all_rows(prepared: Prepared, config: DataConfig, callback: Callback) -> Measurable:
    """Every usable row of a file. How many are left out is said, since they are not measured."""
    report, data = prepared.data_report, str(config.path)
    if report.skipped:
        why = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped_why.items())
        callback(WarningMessage(f"{report.skipped:,} of {report.rows:,} rows of {data} are not measured: {why}"))
    return Measurable(prepared.trained_rows, data, left_out=report.skipped, config=config)


def refuse_training_files(run: RunSnapshot, files: Mapping[str, str]) -> None:
    """Refuse `files` (names by SHA-256) that the run was trained on, since memorised rows do not show what a model can
    do."""
    _refuse_trained(_trained(run), files)


def _refuse_trained(trained: Mapping[str, str], files: Mapping[str, str]) -> None:
    for identity, name in files.items():
        if identity in trained:
            raise DataError(f"{name}: belongs to the data of the run ({trained[identity]}). Give other rows.")


def _trained(run: RunSnapshot) -> dict[str, str]:
    """Return the names of the run's training files by SHA-256, those of replay rows among them."""
    replay = run.recorded_data.replay
    replayed = {} if replay is None else dict.fromkeys(replay.origins, replay.source)
    return replayed | {file.sha256: file.name for file in files_of(run)[0]}


def files_of(run: RunSnapshot) -> tuple[list[PartFacts], list[PartFacts]]:
    """Split the run's files into training and validation files; the data report lists validation files last, and a file
    that is both twice."""
    files, apart = list(run.recorded_data.files), run.experiment.data.validation
    measured: dict[str, PartFacts] = {}
    while apart is not None and files and _is_of(files[-1].name, apart.path) and files[-1].name not in measured:
        measured[files[-1].name] = files.pop()
    return files, list(measured.values())


def _is_of(name: str, path: str) -> bool:
    path = os.path.expanduser(path)  # noqa: PTH111
    return name == path or name.startswith(path.rstrip("/") + "/")


def prepared_again(run: RunSnapshot, row_encoding: RowEncoding, callback: Callback, advice: str = "") -> Prepared:
    """The rows of a run as it had them, those that it trained on and those that it held out. DataError with the
    `advice` where a file has changed since."""
    prepared = prepare(run.data_here, row_encoding, callback)
    refuse_fatal(prepared.data_report, trains=False)
    before, after = ([file.sha256 for file in one.files] for one in (run.recorded_data, prepared.data_report))
    if before != after:
        raise DataError(
            f"the files that {run.folder} was trained on have changed, so its validation rows can no longer be "
            f"identified.{advice}"
        )
    return prepared


def _validation_rows(run: RunSnapshot, config: DataConfig, row_encoding: RowEncoding, callback: Callback) -> Measurable:
    if not run.recorded_data.validation_rows:
        raise DataError(f"{run.folder} has no validation rows to measure on.{GIVE_OTHER_ROWS}")
    prepared = prepared_again(run, row_encoding, callback, GIVE_OTHER_ROWS)
    about = (
        config.validation.path
        if config.validation is not None
        else f"the {len(prepared.validation)} validation sequences"
    )
    return Measurable(prepared.measured_rows, about, is_run_validation=True, config=run.data_here)


def as_written(documents: Sequence[Tokens], config: DataConfig | None) -> dict[str, Example]:
    """By their names, the rows that these were encoded from. Ids do not tell how a text was written, such as in
    capitals."""
    wanted, found = {one.name for one in documents}, dict[str, Example]()
    if config is None:
        return found
    for source in filter(None, (config.measured_source, *config.all_sources)):
        for chunk in open_source(config, source).chunks():
            found |= {one.where: one for row in chunk for one in row if one.where in wanted}
            if len(found) == len(wanted):
                return found
    return found
