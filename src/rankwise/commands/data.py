"""Inspect rows before training: `check` reports on them, `preview` shows which tokens are training targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rankwise.base.cached import cached_starter
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing, ImagesConfig
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import OBJECTIVES, as_pairs
from rankwise.config.recipe import recipe_named
from rankwise.constraints.constraint import answers_in
from rankwise.errors import ConfigError, DataError, did_you_mean, joined_problems
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import objective_by
from rankwise.rows.classes import read_targets
from rankwise.rows.files.output import check_name, file_of
from rankwise.rows.forms.pair_rows import is_pair
from rankwise.rows.images.decode import decode, record_of
from rankwise.rows.images.pictures import check_sheet, contact_sheet
from rankwise.rows.images.processor import pixels_of
from rankwise.rows.preparation import prepared_of
from rankwise.rows.preparing import prepare
from rankwise.rows.reading import Encoding
from rankwise.rows.report.raw_rows import RawReport, problems, sentences, unused_columns
from rankwise.rows.samples import PICTURES, SAMPLES, pictures
from rankwise.rows.sources import OpenedSource, open_source, raw_records
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import EncodingFacts, Outcome, RowEncoding, Shown
from rankwise.rows.text.targets import RowTargets
from rankwise.rows.writing import TextWriting
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.system.files import check_place, write_atomic

AS_THE_MODEL = ImagesConfig()
DEFAULT_SHEET, DEFAULT_ROWS = Path("contact_sheet.png"), 24


def check(
    data: DataConfig, model: ModelConfig | None = None, *, images: ImagesConfig = AS_THE_MODEL,
    objective: str = "auto", callback: Callback = silent,
) -> DataReport:  # fmt: skip
    """Make the data report. Tokens are counted with the tokenizer of `model`, or of a cached starter."""
    if model is None and holds_images(data):
        return _check_images(data, callback)
    data = _as_pairs(data, objective, callback)
    written = _row_encoding(data, model, images, objective, callback)
    if written is None:
        callback(
            StatusMessage(
                "no model was given and no starter is cached, so tokens, loss masks and templates were not checked"
            )
        )
        return count_only(data, callback)
    return prepare(data, written[1], callback).data_report


def count_only(config: DataConfig, callback: Callback) -> DataReport:
    """What can be said of rows without any tokenizer."""
    work = Encoding(config, None, EncodingFacts(answers=answers_in(config)), callback=callback, look=looked_at)
    return prepared_of(work, work.read(None)).data_report


def looked_at(example: Example) -> Outcome:
    """Decode the image of a row without a model. A row of text stays as it is."""
    outcome = Outcome(example)
    if example.image is not None:
        try:
            outcome.image = record_of(decode(example.image, example.where))
        except DataError as error:
            outcome.problem = str(error)
    return outcome


def _as_pairs(data: DataConfig, name: str, callback: Callback) -> DataConfig:
    """The settings of a training on preference pairs, where this is the objective, or the first row of the data is a
    pair and nothing says how else to read it."""
    if name != "auto":
        return OBJECTIVES[name].rows(data)
    reads = [source for source in data.all_sources if source.format == "auto" and not source.columns]
    first = open_source(data, reads[0]).parts[:1] if reads and data.prompt is None else []
    _, row = next(raw_records(first[0]), ("", None)) if first else ("", None)
    ignored = reads[0].ignore_columns if reads else ()
    if not isinstance(row, dict) or not is_pair(row) or {"chosen", "rejected"} & set(ignored):
        return data
    callback(StatusMessage("these rows are preference pairs, which are trained on with --objective preference"))
    return as_pairs(data)


def _check_images(data: DataConfig, callback: Callback) -> DataReport:
    """The report without a model. What is wrong with the classes is an error, as in training."""
    data_report = count_only(data, callback)
    if not data_report.fatal:
        _check_validation(data, RowTargets(read_targets(data, ClassificationConfig())))
    return data_report


def _check_validation(data: DataConfig, targets: RowTargets) -> None:
    """DataError where validation rows have a class that no training row has."""
    problems: list[str] = []
    reading = None if data.measured_source is None else open_source(data, data.measured_source)
    for chunk in reading.chunks() if reading is not None else ():
        for example in (example for row in chunk for example in row):
            try:
                targets.of(example)
            except DataError as error:
                problems.append(str(error))
    if problems and data.on_bad_row == "stop":
        raise DataError(joined_problems(problems))


def preview(
    data: DataConfig,
    model: ModelConfig | None = None,
    *,
    rows: int | None = None,
    first: int | None = None,
    out: Path | None = None,
    images: ImagesConfig = AS_THE_MODEL,
    objective: str = "auto",
    callback: Callback = silent,
) -> list[Shown] | PreviewSheet:
    """Return so many rows from row `first` on as training would see them. Images are written to `out` as a sheet;
    without `first` they are drawn from all rows."""
    are_images = holds_images(data)
    data = data if are_images else _as_pairs(data, objective, callback)
    if out is not None and not are_images:
        raise ConfigError(["--out is the name of a sheet of images, but these rows are texts. Leave it out."])
    if are_images and model is None:
        return preview_images(data, None, out, rows=rows or DEFAULT_ROWS, first=first)
    written = _row_encoding(data, model, images, objective, callback)
    if written is None:
        raise DataError("no starter model is cached to show the rows with; name a model with --model.")
    decided, writing = written
    if are_images != ("images" in writing.facts.reads):
        rows_hold, read = ("images", "texts") if are_images else ("texts", "images")
        raise DataError(
            f"{data.all_sources[0].path}: holds {rows_hold}, and the model {writing.name} reads {read}. Give another "
            "--model, or leave it out."
        )
    if are_images:
        return preview_images(data, writing.facts.processing, out, rows=rows or DEFAULT_ROWS, first=first)
    examples = _read_texts(data, rows or 3, first or 1, callback)
    assert isinstance(writing, TextWriting), "the rows are texts"
    return [shown for example in examples for shown in _shown(example, decided, writing.by(data), data)]


def _read_texts(data: DataConfig, rows: int, first: int, callback: Callback) -> list[Example]:
    raw: list[RawReport] = []
    examples = list(islice(_examples(data, raw), first - 1, first - 1 + rows))
    unused = unused_columns(raw)
    for problem in [*sentences(unused), *problems(raw, unused)]:
        callback(WarningMessage(problem.rstrip(".")))
    if not examples:
        raise DataError(f"there is no row {first}.")
    return examples


def _examples(data: DataConfig, raw: list[RawReport]) -> Iterator[Example]:
    for source in data.all_sources:
        reading = open_source(data, source)
        raw.append(report := RawReport(reading))
        for chunk in reading.chunks(report.add):
            yield from (example for row in chunk for example in row)
        _refuse_bad(data, reading)


def _refuse_bad(data: DataConfig, reading: OpenedSource) -> None:
    if reading.skipped and data.on_bad_row == "stop":
        raise DataError(joined_problems([why for _, why in reading.skipped]))


def _shown(example: Example, objective: Objective, row_encoding: TextWriting, data: DataConfig) -> list[Shown]:
    encoder = row_encoding.encoder(data)
    (outcome,) = encoder.encode([example])
    if outcome.problem is not None:
        raise DataError(outcome.problem)
    return objective.rows.preview(outcome, row_encoding, encoder)


def _row_encoding(
    data: DataConfig, model: ModelConfig | None, images: ImagesConfig, name: str, callback: Callback
) -> tuple[Objective, RowEncoding] | None:
    """The objective, and how a training with this model would read the rows; None where no tokenizer is here."""
    if model is None:
        starter = cached_starter()
        if starter is None:
            return None
        callback(StatusMessage(f"tokens are counted with {starter}, which is cached; name your model with --model"))
    else:
        starter = model.name
    spec = model or ModelConfig(name=starter)
    objective = objective_by(spec, data, images, callback, name)
    if data.recipe is not None and not spec.new_tokens:
        spec = spec.model_copy(update=recipe_named(data.recipe).new_tokens)
    return objective, objective.rows.encoding_alone(spec, callback, guessed=model is None)


@dataclass(frozen=True)
class ShownImage:
    """An image of the sheet, or one that is left out."""

    where: str
    label: str
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()
    """What was changed in decoding it."""
    left_out: str | None = None
    """Why it is left out of training."""

    def describe(self) -> str:
        if self.left_out is not None:
            return f"left out: {self.left_out}"
        return "; ".join([f"{self.where}  {self.label}  {self.width} x {self.height}", *self.notes])


@dataclass(frozen=True)
class PreviewSheet:
    path: Path
    rows: list[ShownImage]

    def summary(self) -> dict[str, Any]:
        """What `rankwise data preview --json` prints."""
        return {"out": self.path, "rows": self.rows}


def holds_images(data: DataConfig) -> bool:
    """Whether the rows of the first source are images."""
    reading = open_source(data, data.all_sources[0].model_copy(update={"rows": None}))
    next(reading.chunks(), None)
    return any(part.of_images or part.format == "image" for part in reading.parts)


def preview_images(
    data: DataConfig, processing: ImageProcessing | None, out: Path | None, *, rows: int, first: int | None
) -> PreviewSheet:
    """Write a sheet of rows from row `first` on, or of rows that are drawn by data.seed. With `processing`, images look
    as the model receives them."""
    path = out or DEFAULT_SHEET
    check_sheet(path)
    check_place(path)
    begin = (first or 1) - 1
    examples = list(islice(_image_examples(data, rows if first is None else None), begin, begin + rows))
    if not examples:
        raise DataError(f"there is no row {begin + 1}.")
    shown = [_image_shown(example, processing) for example in examples]
    problems = [image.left_out for image, _ in shown if image.left_out is not None]
    if problems and (data.on_bad_row == "stop" or len(problems) == len(shown)):
        raise DataError(joined_problems(problems))
    numbered = enumerate(shown, start=begin + 1)
    tiles = [(picture, f"{number}  {image.label}") for number, (image, picture) in numbered if picture is not None]
    write_atomic(path, contact_sheet(tiles))
    return PreviewSheet(path, [image for image, _ in shown])


def _image_examples(data: DataConfig, drawn: int | None) -> Iterator[Example]:
    """The images of all sources, or so many drawn from them. A row that cannot be read stops the preview where its
    source ends."""
    for source in data.all_sources:
        share = source.rows if drawn is None else min(source.rows or drawn, -(-drawn // len(data.all_sources)))
        reading = open_source(data, source.model_copy(update={"rows": share}))
        for chunk in reading.chunks():
            yield from (example for row in chunk for example in row)
        if reading.skipped and data.on_bad_row == "stop":
            raise DataError(joined_problems([why for _, why in reading.skipped]))


def _image_shown(example: Example, processing: ImageProcessing | None) -> tuple[ShownImage, Any]:
    label = example.messages[-1].content
    if example.image is None:
        return ShownImage(example.where, label, left_out=f"{example.where}: is a row without an image."), None
    try:
        image = decode(example.image, example.where)
    except DataError as error:
        return ShownImage(example.where, label, left_out=str(error)), None
    picture = image.picture if processing is None else pixels_of(image.picture, processing)
    return ShownImage(example.where, label, image.width, image.height, image.notes), picture


def sample(name: str, out: Path, callback: Callback = silent) -> int:
    """Write sample rows as a file, or sample pictures as a folder, which must not be there yet; how many there are."""
    known = (*SAMPLES, PICTURES)
    if name not in known:
        raise ConfigError([f'there are no samples "{name}".{did_you_mean(name, known)} Known: {", ".join(known)}.'])
    if out.exists():
        raise DataError(f"{out}: already exists. Give --out another name.")
    if name == PICTURES:
        return pictures(out)
    check_name(out)
    check_place(out)
    rows = SAMPLES[name].rows
    write_atomic(out, file_of(rows, out, callback=callback))
    return len(rows)
