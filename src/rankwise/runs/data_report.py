"""data_report.json: what a run's training data really was, and the template that everything after it renders with."""

from __future__ import annotations

from typing import Literal

from rankwise.config.base import Config
from rankwise.errors import some

DATA_REPORT = "data_report.json"
MOST_LISTED = 100
"""Rows left out that are listed one by one."""


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class LayoutFacts(Config):
    """How a table is written: as detected, or as the settings say."""

    encoding: str | None = None
    """None for a workbook."""
    delimiter: str | None = None
    """None for a workbook, and for a table of one column."""
    sheet: str | None = None
    unnamed_columns: int = 0
    """Empty columns at the end whose name is empty too; they are left out."""

    def describe(self) -> str:
        if self.sheet is not None:
            return f'sheet "{self.sheet}"'
        delimiter = DELIMITERS.get(self.delimiter or "", repr(self.delimiter))
        columns = f"separated by {delimiter}" if self.delimiter is not None else "one column"
        several = "s" if self.unnamed_columns > 1 else ""
        dropped = (
            f", {self.unnamed_columns} empty column{several} without a name left out" if self.unnamed_columns else ""
        )
        return f"{columns}, encoded as {self.encoding}{dropped}"


class PartFacts(Config):
    """One file, or one split of a hub data set."""

    name: str
    sha256: str
    format: str | None
    rows: int
    licence: str
    layout: LayoutFacts | None = None
    """Of CSV, TSV and workbooks."""


class TemplateFacts(Config):
    """`sources` is the Jinja text, by name where a model has several; `start` goes before it."""

    kind: str
    sources: dict[str, str]
    sha256: str
    ends: tuple[str, ...]
    start: str


class LengthFacts(Config):
    """Tokens per document, before any was cut or left out."""

    median: int
    p90: int
    p99: int
    longest: int
    suggested_max_length: int
    """Holds 99 of 100 documents, rounded up to a multiple of 64."""


class Skipped(Config):
    where: str
    why: str


class UnusedColumn(Config):
    """A column that no part of any row was made of."""

    column: str
    file: str
    filled: int
    rows: int
    """How many the file has; of them so many are filled."""
    example: str
    stops: bool
    """It must be used or left out on purpose before these rows are trained on."""
    why: str
    """What it holds."""


class OverlapFacts(Config):
    """Rows to measure with whose question is also trained on."""

    exact: int
    near: int
    of: int


class HoldOutFacts(Config):
    """Which of the rows that are kept are measured and not trained on."""

    order: Literal["seed", "last"]
    seed: int | None
    """None where the last rows are held out."""
    requested: int
    rows: int
    of: int
    """Rows that are kept."""
    labels: dict[str, int] | None
    """Held-out rows of each label, the hundred most frequent; None where rows have no labels."""
    group: str | None
    """The column whose groups are on one side whole."""
    groups: int | None
    groups_in_all: int | None

    def describe(self) -> str:
        """In one sentence."""
        return f"Held out {self.counts()}."

    def counts(self) -> str:
        """The same beside the words "held out"."""
        text = f"{self.rows:,} of {self.of:,} rows"
        text += f" by seed {self.seed}" if self.order == "seed" else ", the last of each source"
        if self.group is not None:
            text += (
                f", {self.groups:,} of {self.groups_in_all:,} groups by {self.group} (requested: {self.requested:,})"
            )
        if self.labels:
            listed = some((f"{label} {count:,}" for label, count in self.labels.items()), 8)
            text += f"{', stratified' if self.order == 'seed' else ''} by label: {listed}"
        return text


class ValidationFacts(Config):
    """Rows of the validation source, which are counted nowhere else in the data report."""

    rows: int
    kept: int
    skipped: int
    skipped_why: dict[str, int]
    skipped_rows: tuple[Skipped, ...]
    """The first hundred."""
    truncated: int | None
    loss_tokens: int | None


class DataReport(Config):
    """Token counts are of all documents kept, and None where no model was named to count with.

    A row is what the file holds; a document is what is learned at a time. They differ where a row holds several tasks,
    a conversation was split, or each answer has a row of its own.
    """

    version: Literal[1] = 1
    format: str
    """Of all files, with commas between."""
    files: tuple[PartFacts, ...]
    left_aside: tuple[str, ...] = ()
    """Files of a folder that belong to other splits."""
    model: str | None
    rows: int
    kept: int
    skipped: int
    skipped_why: dict[str, int]
    skipped_rows: tuple[Skipped, ...]
    """The first hundred."""
    held_out: int
    """Rows that are measured and not trained on: some of those kept, or those kept of the validation source."""
    hold_out: HoldOutFacts | None = None
    """Which of those kept. None for an validation source."""
    labels: dict[str, int] | None = None
    """Rows of each label, the hundred most frequent; None where rows have no labels."""
    distinct_labels: int | None = None
    validation: ValidationFacts | None = None
    documents: int | None
    tokens: int | None
    loss_tokens: int | None
    eos_supervised: int | None
    """Documents in which the end of every learned answer is learned."""
    truncated: int | None
    unsupervised: int | None
    """Documents that had no supervised token left after cutting; they are left out."""
    lengths: LengthFacts | None
    masks: dict[str, int]
    """How the answers were found, and in how many documents."""
    template_parity: bool | None
    """Whether what stands before every answer is, id for id, what generation will be given."""
    template_parity_broken: int | None
    duplicates: int
    """Rows that say what an earlier row says."""
    near_duplicates: int
    overlap: OverlapFacts | None
    double_start: int | None
    control_tokens_as_text: int | None
    """Rows in which somebody typed a control token of this model."""
    unknown_special_tokens: dict[str, int]
    """What looks like a control token of other models, and in how many rows."""
    replacement_characters: int
    licence: str
    system: str | None
    """The system message that all rows share, if they do; answers are asked for with it too."""
    recipe: str | None
    template: TemplateFacts | None
    unused_columns: tuple[UnusedColumn, ...] = ()
    warnings: tuple[str, ...]
    fatal: tuple[str, ...]
    """Why this must not be trained on."""
    advice: tuple[str, ...] = ()
    """What can be done about it."""
