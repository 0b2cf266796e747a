"""data_report.json: what a run's training data contained, and the chat template for everything that follows; and the
report as lines of text, for the terminal and for the page."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rankwise.config.base import Config
from rankwise.config.data import Constraint
from rankwise.config.images import ImageProcessing
from rankwise.errors import one_line, some
from rankwise.runs.row_facts import (
    ANSWERS,
    TEXTS,
    Doubt,
    Enumeration,
    HoldOutFacts,
    ImageCopy,
    ImageFacts,
    LayoutFacts,
    Learned,
    NewTokenFacts,
    PairFacts,
    ReplayFacts,
    TagFacts,
    TargetFacts,
    UnusedColumn,
)

DATA_REPORT = "data_report.json"
BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z"
MOST_LISTED = 100
"""Largest number of left-out rows that are listed."""


class PartFacts(Config):
    """One file, or one split of a hub data set."""

    name: str
    sha256: str
    format: str | None
    rows: int
    licence: str
    layout: LayoutFacts | None = None
    """Only for CSV, TSV, workbooks and arrays."""
    row_hashes: Annotated[str, Field(pattern=BASE64)] = ""
    """Eight bytes of a hash of each row, in base64. Empty for very many rows, and in reports of earlier versions."""


class TemplateFacts(Config):
    """A chat template: Jinja texts by name in `sources`, `start`, put before every conversation, and data.reasoning."""

    kind: str
    sources: dict[str, str]
    sha256: str
    ends: tuple[str, ...]
    start: str
    reasoning: Literal["none", "learn", "mask"] = "none"


class LengthFacts(Config):
    """Tokens per sequence, before any was truncated or left out."""

    median: int
    p90: int
    p99: int
    longest: int
    suggested_max_length: int
    """Long enough for 99 % of the sequences, rounded up to a multiple of 64."""

    def describe(self) -> str:
        return (
            f"median {self.median:,}, 90 % {self.p90:,}, 99 % {self.p99:,}, longest {self.longest:,}; --max-length "
            f"{self.suggested_max_length} is enough for 99 % of them"
        )


class Skipped(Config):
    where: str
    why: str


class OverlapFacts(Config):
    """Validation rows whose prompt, or whose image, is also in the training rows."""

    exact: int
    near: int
    of: int
    example: str = ""
    """`file:line` of the first three; their prompts are the same but for case, white space and punctuation."""
    images: tuple[ImageCopy, ...] | None = None
    """The first twenty such validation images, each with the training image that it equals."""

    def describe(self) -> str:
        what, first = ("images", self.images[0].describe()) if self.images else ("prompts", self.example)
        text = (
            f"validation {what} that are also in the training rows: {self.exact:,} exactly and {self.near:,} nearly, "
            f"of {self.of:,}"
        )
        return f"{text}, such as {first}" if first else text


class ValidationFacts(Config):
    """Counts of the separate validation data, which are not part of the other counts."""

    rows: int
    used: int
    skipped: int
    skipped_why: dict[str, int]
    skipped_rows: tuple[Skipped, ...]
    """The first hundred."""
    truncated: int | None
    loss_tokens: int | None


class DataReport(Config):
    """What the data contains. Token counts cover all usable sequences; they are None if no model was given to count
    with.

    A row is one entry of a file; a sequence is one training example. They differ if a row has several tasks, a
    conversation is split, or each answer becomes an example of its own.
    """

    version: Literal[1] = 1
    format: str
    """Formats of all files, separated by commas."""
    files: tuple[PartFacts, ...]
    left_aside: tuple[str, ...] = ()
    """Files of a folder that belong to other splits."""
    model: str | None
    rows: int
    used: int
    skipped: int
    skipped_why: dict[str, int]
    skipped_rows: tuple[Skipped, ...]
    """The first hundred."""
    validation_rows: int
    """Validation rows: held out from the usable rows, or the usable rows of separate validation data."""
    hold_out: HoldOutFacts | None = None
    """How they were chosen; None for separate validation data."""
    labels: dict[str, int] | None = None
    """Rows per label, for the hundred most frequent labels; None if rows have no labels."""
    distinct_labels: int | None = None
    targets: TargetFacts | None = None
    """The classes or numbers that a classifier predicts; None for a language model."""
    pairs: PairFacts | None = None
    """What is known of preference pairs; None for other rows."""
    new_tokens: NewTokenFacts | None = None
    """Tokens that the training adds to the model; None where it adds none."""
    tags: TagFacts | None = None
    """What is known of rows whose words have tags; None for other rows."""
    encoder_decoder: bool = False
    """Whether an encoder reads a row's input and a decoder writes its output."""
    images: ImageFacts | None = None
    """Sizes, conversions and copies; None where rows are texts."""
    image_processing: ImageProcessing | None = None
    """How images become what the model reads; None where rows are texts."""
    class_repeats: dict[str, float] | None = None
    """With balanced sampling: how often a pass shows each training row of a class, on average."""
    validation: ValidationFacts | None = None
    replay: ReplayFacts | None = None
    """Rows that training shows among these; None without replay. They are no part of the other counts."""
    sequences: int | None
    tokens: int | None
    loss_tokens: int | None
    eos_in_loss: int | None
    """Sequences in which the end token of every target answer is a target too."""
    truncated: int | None
    without_loss_tokens: int | None
    """Sequences left out because truncation removed all their loss tokens."""
    lengths: LengthFacts | None
    masks: dict[str, int]
    """Methods that located the answers, with the number of sequences."""
    template_parity: bool | None
    """Whether the tokens before every answer equal the prompt tokens of generation."""
    template_parity_broken: int | None
    duplicates: int
    """Rows that repeat an earlier row."""
    near_duplicates: int
    overlap: OverlapFacts | None
    double_start: int | None
    control_tokens_as_text: int | None
    """Rows whose text contains a control token of this model."""
    unknown_special_tokens: dict[str, int]
    """Texts that look like control tokens of other models, with the number of rows."""
    replacement_characters: int
    licence: str
    system: str | None
    """The system message that all rows share, if any; generation uses it too."""
    constraint: Constraint | None = None
    """What every answer is held to, here and in what the run writes; None where answers are free."""
    enumerations: tuple[Enumeration, ...] = ()
    """Fields of the answers that have few values, where their schema was inferred. They bind nobody."""
    recipe: str | None
    template: TemplateFacts | None
    unused_columns: tuple[UnusedColumn, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    """What rows probably mean otherwise than their author thinks. These are among `warnings`, or among `fatal`."""
    warnings: tuple[str, ...]
    fatal: tuple[str, ...]
    """Reasons why training on this data is refused."""
    advice: tuple[str, ...] = ()
    """Suggestions for fixing problems."""

    @model_validator(mode="after")
    def _has_whole_targets(self) -> Self:
        one = self.targets
        many = 0 if one is None else len(one.classes)
        if one is not None and (len(one.counts) != many or len(one.weights) not in (0, many)):
            raise ValueError(f"the targets have {many} classes, {len(one.counts)} counts, {len(one.weights)} weights")
        if one is not None and not many and None in (one.low, one.high):
            raise ValueError("the targets have neither classes nor a lowest and a highest number")
        return self

    @property
    def learned(self) -> Learned:
        """What is learned of the rows. The answers of all language models are reported alike."""
        return self.pairs or self.targets or ANSWERS

    @property
    def sampling(self) -> str | None:
        """Describe balanced sampling in one sentence; None without it."""
        if self.class_repeats is None:
            return None
        rarest_first = sorted(self.class_repeats.items(), key=lambda item: -item[1])
        listed = some((f"{one_line(name)} {times:.3g}" for name, times in rarest_first), 12)
        return (
            "balanced sampling shows every class equally often; the number of times that a pass shows each row of a "
            f"class: {listed}"
        )


def about(file: PartFacts) -> str:
    """A file and what is in it."""
    layout = f", {file.layout.describe()}" if file.layout is not None else ""
    rows = f"{file.rows:,} rows, format {file.format}" if file.format else f"unknown format, rows read: {file.rows:,}"
    return f"{file.name}: {rows}{layout}, licence {file.licence}"


def verdict_of(data_report: DataReport) -> str:
    """The last line of a report."""
    if data_report.fatal:
        return "Fix the errors above before training on these rows."
    return f"No errors found. Warnings: {len(data_report.warnings)}." if data_report.warnings else "No problems found."


def lines_of(data_report: DataReport) -> list[tuple[str, str, int]]:
    """Label, text and count of each line."""
    apart = f", {data_report.validation_rows:,} for validation" if data_report.validation_rows else ""
    looks, pairs, lengths = data_report.images or TEXTS, data_report.pairs, data_report.lengths
    labels, validation, both = data_report.labels or {}, data_report.validation, data_report.overlap
    new, template, used = data_report.new_tokens, data_report.template, data_report.used
    held = data_report.constraint
    left_out = f"read, {used:,} used{apart}{_left_out(data_report.skipped_why)}"
    lines = [
        ("rows", f"{data_report.rows:,} {left_out}", data_report.rows),
        ("held out", data_report.hold_out and data_report.hold_out.counts(), data_report.validation_rows),
        ("labels", some((f"{one_line(label)} {count:,}" for label, count in labels.items()), 12)
         + ("; a classifier reads these as names, or as numbers with classification.targets=numbers"
            if labels and data_report.learned.are_named(labels=True) and all(label.lstrip("-").isdecimal()
            for label in labels) else ""), len(labels)),
        ("validation rows", validation and f"{validation.rows:,}{_left_out(validation.skipped_why)}",
         validation.rows if validation else 0),
        *looks.lines(),
        ("pairs", pairs and pairs.counts(), pairs.rows if pairs else 0),
        ("pairs to look at", pairs and pairs.doubts(),
         pairs.duplicates + pairs.contradictions + pairs.ties if pairs else 0),
        *_token_lines(data_report),
        ("length in tokens", lengths and lengths.describe(), lengths.longest if lengths else 0),
        (f"duplicate {looks.unit}", f"{data_report.duplicates:,} exact, {data_report.near_duplicates:,} near",
         data_report.duplicates + data_report.near_duplicates),
        ("overlap with training", both and f"{both.exact:,} exact, {both.near:,} near, of {both.of:,} validation rows",
         both.of if both else 0),
        ("strictest licence", data_report.licence, used),
        ("sampling", data_report.sampling, used),
        ("answers held to", held and f"{held.kind}: {held.text}", used),
        *(("few values", one.describe(), used) for one in data_report.enumerations),
        ("new tokens", new and new.describe(), len(new.counts) if new else 0),
        ("template", template and f"{template.kind} ({template.sha256[:12]})", used),
    ]  # fmt: skip
    return [(label, text, count) for label, text, count in lines if text and label not in looks.without]


def _token_lines(data_report: DataReport) -> list[tuple[str, str, int]]:
    if data_report.tokens is None or data_report.loss_tokens is None:
        return []
    share = data_report.loss_tokens / max(1, data_report.tokens)
    masks = ", ".join(f"{count:,} by {method}" for method, count in data_report.masks.items())
    cut, emptied = data_report.truncated or 0, data_report.without_loss_tokens or 0
    differs = data_report.template_parity_broken or 0
    prompts = "the same as in training" if data_report.template_parity else f"differs from training in {differs:,}"
    tokens = f"{data_report.tokens:,}, {share:.0%} of them in the loss ({data_report.loss_tokens:,})"
    learned, tags, sequences = data_report.learned, data_report.tags, data_report.sequences or 0
    lines = {
        "tokens": ("tokens", f"{data_report.tokens:,}", data_report.tokens),
        "tokens and loss": ("tokens", tokens, data_report.tokens),
        "targets": ("targets", learned.describe(), sequences),
        "end": ("end token in the loss", f"in {data_report.eos_in_loss or 0:,} of {sequences:,} sequences", sequences),
        "truncated": ("truncated", f"{cut:,}", cut),
        "truncated or emptied": ("truncated", f"{cut:,}; no loss tokens left in {emptied:,}", cut + emptied),
        "masks": ("answers located", masks or "none", len(data_report.masks)),
        "prompt": ("inference prompt", prompts, sequences),
        "words": ("words with tags", tags.describe() if tags else "", tags.words if tags else 0),
    }
    return [lines[name] for name in learned.lines]


def _left_out(reasons: dict[str, int]) -> str:
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f", left out: {why}" if why else ""
