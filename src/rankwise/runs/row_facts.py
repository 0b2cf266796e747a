"""What a data report says of rows, by what they are: targets, tags, pairs, images, tables, new tokens and replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from rankwise.config.base import Config
from rankwise.errors import one_line, some
from rankwise.runs.records import OF_LANGUAGE_MODELS

Pooling = Literal["own", "mean", "cls", "max"]


class Learned(Config):
    """What is learned of rows, and what is said of them for it: here the answers that a language model writes."""

    lines: ClassVar[tuple[str, ...]] = ("tokens and loss", "end", "truncated or emptied", "masks", "prompt")
    """The report's lines on tokens."""
    uncounted: ClassVar[tuple[str, ...]] = ()
    """Fields of the report that there are not."""
    accepts: ClassVar[tuple[str, ...]] = ("label-of-each-row",)
    """Doubts that stop no training."""
    unmeasured: ClassVar[str] = "; whether its answers are better was not measured"
    """What a loss does not say."""
    next_step: ClassVar[str] = "Compare its answers with those of the base"
    unrecorded: ClassVar[tuple[str, ...]] = ()
    """What is taken for granted of an adapter without a data report."""

    @property
    def reads(self) -> frozenset[str]:
        """Forms of rows, beside texts and conversations, that are learned: pairs, tags, images, lists."""
        return frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes that are predicted."""
        return ()

    @property
    def evened(self) -> tuple[str, ...]:
        """Names of the classes that training shows equally often."""
        return ()

    @property
    def loss_unit(self) -> str:
        return OF_LANGUAGE_MODELS

    @property
    def taken(self) -> str:
        """What becomes of labels that look like numbers."""
        return "They are learned as texts"

    @property
    def meaning(self) -> str:
        """What an output of the model is."""
        return "tokens of answers"

    def are_named(self, *, labels: bool) -> bool:
        """Whether labels are names; `labels` is whether the rows call them labels."""
        return labels

    def answers(self, *, labels: bool) -> str:
        """What answers are counted as; `labels` is whether few different ones come again and again."""
        return "labels" if labels else "texts"

    def describe(self) -> str:
        """In one sentence."""
        return ""

    def reported(self, pairs: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the data report that are its own. `pairs` is what was counted of pairs."""
        return {}


ANSWERS = Learned()


class Outputs(Learned):
    """What a decoder writes for what an encoder has read."""

    uncounted = ("template",)

    def reported(self, pairs: Mapping[str, Any]) -> dict[str, Any]:
        return {"encoder_decoder": True}


class TargetFacts(Learned):
    """What a model predicts for a row: one of several classes, a number if there are no classes, or tags of words."""

    lines = ("tokens", "targets", "words", "truncated")
    uncounted = ("template", "template_parity", "template_parity_broken", "eos_in_loss")
    accepts = ()
    unmeasured = ""
    next_step = "Score its predictions, with intervals"
    unrecorded = ("which classes its head predicts; their number is checked, and their order is taken to be",)

    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the model's outputs."""
    counts: tuple[int, ...] = ()
    """Rows of each class in the training data, or words of each tag; held-out validation rows included."""
    weights: tuple[float, ...] = ()
    """Weight of each class in the loss; empty if all weigh 1."""
    balanced: bool = False
    """Whether training shows every class equally often, so rows of rare classes more often than others."""
    form: Literal["one", "several", "tags"] = "one"
    """Whether a row has one class or number, several classes or none, or each of its words a class, which is its
    tag."""
    pooling: Pooling = "own"
    """What the head reads of a whole text (classification.pooling); earlier runs do not record it and have their
    own."""
    low: float | None = None
    """The lowest target, where targets are numbers; `high` is the highest."""
    high: float | None = None

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"lists", self.form})

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def evened(self) -> tuple[str, ...]:
        return self.classes if self.balanced else ()

    @property
    def one_class(self) -> bool:
        """Whether each row has one class."""
        return bool(self.classes) and self.form == "one"

    @property
    def outputs(self) -> int:
        """Number of the model's outputs."""
        return len(self.classes) or 1

    @property
    def loss_unit(self) -> str:
        if not self.classes:
            return "squared error per row"
        return {"tags": "nats per word", "several": "nats per row and class"}.get(self.form, "nats per row")

    @property
    def unit(self) -> str:
        """What has a target."""
        return "words" if self.form == "tags" else "rows"

    @property
    def meaning(self) -> str:
        if self.form == "tags":
            return f"the tags {some(self.classes, 12)}"
        return f"the classes {some(self.classes, 8)}" if self.classes else "a number"

    @property
    def taken(self) -> str:
        return "Each is taken as a name, so as a class of its own" if self.classes else "They are read as numbers"

    def are_named(self, *, labels: bool) -> bool:
        return bool(self.classes)

    def answers(self, *, labels: bool) -> str:
        return "labels"

    def reported(self, pairs: Mapping[str, Any]) -> dict[str, Any]:
        return {"targets": self}

    def gives(self, row: str) -> str:
        """What there is for each row, which is a text or an image."""
        given = {"tags": "each word one of its tags", "several": "every text any number of its classes"}
        return given.get(self.form, f"every {row} one of its classes or a number")

    def describe(self) -> str:
        if not self.classes:
            return f"the target is a number between {self.low:g} and {self.high:g}"
        rows = zip(self.classes, self.counts, strict=True)
        listed = some((f"{one_line(name)} ({count:,} {self.unit})" for name, count in rows), 12)
        weights = some((f"{weight:.3g}" for weight in self.weights), 12)
        classes = {"tags": "tags", "several": "classes, any number of them in a row"}.get(self.form, "classes")
        return f"{len(self.classes)} {classes}: {listed}" + (f"; weights in the loss: {weights}" if weights else "")


class TagFacts(Config):
    """Words with tags in the rows that can be read, held-out validation rows included."""

    words: int
    spans: dict[str, int]
    """Spans of each type, the most frequent first."""
    strays: int
    """Tags I-x that no tag of the same type comes before; each begins a span, as B-x would."""
    widened: int
    """Spans that began or ended inside a word and were widened to whole words."""
    widened_example: str | None = None
    unlearned: int | None
    """Words whose first token they share with the word before, or that have none; they are not learned. None without a
    tokenizer."""
    cut: int | None
    """Words that lie behind the end of a text that was cut."""

    def describe(self) -> str:
        listed = some((f"{one_line(name)} {count:,}" for name, count in self.spans.items()), 12)
        return f"{self.words:,} words, {sum(self.spans.values()):,} spans: {listed or 'none'}"

    def doubts(self) -> list[str]:
        """What may be a mistake, or is lost."""
        example = f", such as {one_line(self.widened_example)!r}" if self.widened_example is not None else ""
        counts = [
            (self.strays, "tags I- without a tag of the same type before them, read as B-"),
            (self.widened, f"spans that begin or end inside a word, widened to whole words{example}"),
            (self.unlearned or 0, "words without a first token of their own, which are not learned"),
            (self.cut or 0, "words behind the end of texts that were cut, which are not learned"),
        ]
        return [f"{what}: {count:,}" for count, what in counts if count]


OF_PAIRS = "nats per pair"


class AnswerFacts(Config):
    """Tokens of the chosen answers, or of the rejected ones, that the loss falls on."""

    median: int
    longest: int


class PairFacts(Learned):
    """Pairs of a chosen and a rejected answer to one prompt."""

    loss: str
    beta: float
    prompts: bool = False
    """Whether the likelihood of orpo also covers the prompts."""
    rows: int
    """Pairs that can be used, validation rows that are held out from them included."""
    chosen: AnswerFacts | None = None
    """None where no tokens were counted."""
    rejected: AnswerFacts | None = None
    chosen_longer: float | None = None
    """Share of the pairs whose chosen answer is the longer one: what a model could learn is only to write more."""
    duplicates: int
    """Pairs that repeat an earlier pair."""
    contradictions: int
    """Pairs whose chosen answer another pair with the same prompt rejects, for the answer that this one rejects."""
    ties: int
    """Pairs left out because both answers are the same tokens."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"pairs"})

    @property
    def loss_unit(self) -> str:
        return OF_PAIRS

    def reported(self, pairs: Mapping[str, Any]) -> dict[str, Any]:
        return {"pairs": self.model_copy(update=dict(pairs))}

    def describe(self) -> str:
        return f"{self.rows:,} pairs are learned by {self.loss} with beta {self.beta:g}{self._lengths}"

    def doubts(self) -> str:
        """Counts of pairs that may be mistakes."""
        return (
            f"{self.duplicates:,} repeated, {self.contradictions:,} contradicting another, {self.ties:,} with two "
            "equal answers"
        )

    def counts(self) -> str:
        return f"{self.rows:,}{self._lengths}"

    @property
    def _lengths(self) -> str:
        if self.chosen is None or self.rejected is None:
            return ""
        return (
            f"; chosen answers have {self.chosen.median:,} tokens and rejected ones {self.rejected.median:,} "
            f"(medians), and the chosen answer is the longer one in {self.chosen_longer:.0%} of the pairs"
        )


Size = tuple[int, int]
"""Width and height."""


class ImageChange(Config):
    """What was changed in some images when they were decoded."""

    what: str
    images: int
    first: tuple[str, ...]


class ImageCopy(Config):
    """An image, and an earlier one that has the same pixels or looks nearly the same."""

    image: str
    label: str
    earlier: str
    earlier_label: str

    def describe(self) -> str:
        return f"{self.image} ({one_line(self.label)}) and {self.earlier} ({one_line(self.earlier_label)})"


class TextRows(Config):
    """What a data report says of rows of text beyond what it says of all rows: nothing."""

    unit: ClassVar[str] = "rows"
    without: ClassVar[tuple[str, ...]] = ()
    """Labels of lines that say nothing of such rows."""

    def lines(self) -> list[tuple[str, str, int]]:
        """Label, text and count of each line of the report."""
        return []


TEXTS = TextRows()


class ImageFacts(TextRows):
    """The decoded images of the training data, validation images that are held out from it included."""

    unit = "images"
    without = ("tokens", "truncated", "length in tokens")

    images: int
    smallest: Size
    """Width and height of the image with the fewest pixels."""
    median: Size
    """The median width and the median height."""
    largest: Size
    landscape: int
    """Images that are wider than high."""
    portrait: int
    square: int
    changes: tuple[ImageChange, ...] = ()
    copies: tuple[ImageCopy, ...] = ()
    """The first twenty images with the same pixels as an earlier one. `duplicates` counts all."""
    near_copies: tuple[ImageCopy, ...] = ()
    """The first twenty that look nearly the same. `near_duplicates` counts all."""
    two_labels: int = 0
    """Images with the same pixels as an earlier image with another label."""
    two_labels_copies: tuple[ImageCopy, ...] = ()
    """The first twenty of them."""
    passed_over: int = 0
    """Files in the folders of images that are no images, or are hidden."""
    passed_over_files: tuple[str, ...] = ()
    """The first twenty of them."""

    def lines(self) -> list[tuple[str, str, int]]:
        sizes = f"smallest {_size(self.smallest)}, median {_size(self.median)}, largest {_size(self.largest)}"
        if self.smallest == self.largest:
            sizes = f"all {_size(self.smallest)}"
        shapes = {"wide": self.landscape, "high": self.portrait, "square": self.square}
        if max(shapes.values()) < self.images:
            sizes += "; " + ", ".join(f"{count / self.images:.0%} {shape}" for shape, count in shapes.items() if count)
        lines = [("image sizes", sizes)]
        for change in self.changes:
            lines.append(("images", f"{change.images:,} {change.what}, such as {some(change.first, 3)}"))
        if self.passed_over:
            names = some(self.passed_over_files, 5) if self.passed_over <= 5 else ", ".join(self.passed_over_files[:5])
            more = f" and {self.passed_over - 5:,} more" if self.passed_over > 5 else ""
            lines.append(("no images", f"{self.passed_over:,} files are passed over: {names}{more}"))
        return [(label, text, self.images) for label, text in lines]


def _size(size: Size) -> str:
    return f"{size[0]:,} x {size[1]:,}"


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class LayoutFacts(Config):
    """How a table is written, as detected or as set; or how the pixels of arrays are read."""

    encoding: str | None = None
    """None for a workbook."""
    delimiter: str | None = None
    """None for a workbook, and for a table of one column."""
    sheet: str | None = None
    unnamed_columns: int = 0
    """Trailing columns without name and content, which are dropped."""
    empty_rows: int = 0
    """Rows without any content between others, which are dropped."""
    empty_row: int | None = None
    """The line of the first of them."""
    pixels: str | None = None
    """Only for arrays of images: their size and the range of their values."""
    nested: str | None = None
    """Only for one JSON object: where its rows are."""

    @property
    def blank(self) -> str:
        if not self.empty_rows:
            return ""
        return f"rows of empty cells, which are left out: {self.empty_rows:,}, the first in line {self.empty_row}"

    def describe(self) -> str:
        if self.nested is not None:
            return self.nested
        if self.pixels is not None:
            return self.pixels
        if self.sheet is not None:
            return f'sheet "{self.sheet}"'
        delimiter = DELIMITERS.get(self.delimiter or "", repr(self.delimiter))
        columns = f"separated by {delimiter}" if self.delimiter is not None else "one column"
        several = "s" if self.unnamed_columns > 1 else ""
        dropped = (
            f", {self.unnamed_columns} empty column{several} without a name left out" if self.unnamed_columns else ""
        )
        return f"{columns}, encoded as {self.encoding}{dropped}"


MOST_TOKENS = 6
"""Tokens that a sentence names."""


class NewTokenFacts(Config):
    """Tokens that a training adds to its model (model.new_tokens)."""

    counts: dict[str, int]
    """How often each occurs in the training rows."""
    existing: tuple[str, ...] = ()
    """The tokens that the tokenizer had already, which are not added."""

    @property
    def warnings(self) -> list[str]:
        unused = [token for token, count in self.counts.items() if not count]
        texts = []
        if unused:
            texts.append(
                f"{_never(unused)} in the training rows, so the model cannot learn where to use "
                f"{'it' if len(unused) == 1 else 'them'}"
            )
        if self.existing:
            texts.append(
                f"{_already(self.existing)}, so nothing is added or trained for "
                f"{'it' if len(self.existing) == 1 else 'them'}"
            )
        return texts

    def describe(self) -> str:
        counts = ", ".join(f"{token!r} {count:,} times" for token, count in [*self.counts.items()][:MOST_TOKENS])
        more = f" and {len(self.counts) - MOST_TOKENS:,} more" if len(self.counts) > MOST_TOKENS else ""
        return f"{counts or 'none'}{more} in the training rows"


def _never(texts: Sequence[str]) -> str:
    token, occur = ("token", "occurs") if len(texts) == 1 else ("tokens", "occur")
    return f"the new {token} {some(map(repr, texts), MOST_TOKENS)} never {occur}"


def _already(texts: Sequence[str]) -> str:
    are = "is a token" if len(texts) == 1 else "are tokens"
    return f"{some(map(repr, texts), MOST_TOKENS)} {are} of this model already (model.new_tokens)"


class ReplayFacts(Config):
    """The rows that a training shows among its own so that the model forgets less."""

    source: str
    """The file or files, or that the base wrote them."""
    sha256: str
    """Hash of the rows as they are trained on: token ids and loss masks."""
    origins: tuple[str, ...] = ()
    """The SHA-256 of the files that they come from."""
    share: float
    """The share of replay rows in the rows that training shows."""
    rows: int
    """Different rows to choose from."""
    tokens: int
    loss_tokens: int
    rows_in_pass: int
    """Replay rows that are shown in the course of one pass over the training rows."""
    loss_share: float
    """The share of replay rows in the tokens that the loss falls on, about: more than `share` where their answers are
    long."""
    left_out: int = 0
    """Rows that are validation rows too, which are not shown."""

    def describe(self) -> str:
        some = f"; {self.left_out:,} are left out, because they are validation rows" if self.left_out else ""
        return (
            f"{self.share:.3g} of the rows shown, {self.rows_in_pass:,} in a pass, are from {self.source}: "
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.loss_tokens:,} of them in the loss, which makes "
            f"{self.loss_share:.0%} of all loss tokens{some}"
        )


class Enumeration(Config):
    """A field of JSON answers that has few values."""

    path: str
    counts: dict[str, int]

    def describe(self) -> str:
        return f"{self.path or 'the answer'}: " + some(
            (f"{one_line(value)} {count:,}" for value, count in self.counts.items()), 12
        )


class Doubt(Config):
    """Rows that probably do not mean what their author thinks, by one of the checks of rows/report/meaning.py."""

    check: str
    rows: int
    of: int
    example: str
    """`file:line` of one or more of them."""
    text: str
    stops: bool
    """Training is refused until data.accept names the check."""

    @property
    def refusal(self) -> str:
        return f"{self.text}. To train on them all the same, add --set data.accept={self.check}."


class UnusedColumn(Config):
    """A column that is not used in any row."""

    column: str
    file: str
    filled: int
    rows: int
    """Rows of the file; `filled` is how many of them have a value."""
    example: str
    stops: bool
    """Training is refused until the column is used or explicitly left out."""
    why: str
    """What the column seems to contain, and why it matters."""


class HoldOutFacts(Config):
    """How rows were held out for validation."""

    order: Literal["seed", "last"]
    seed: int | None
    """None if the last rows are held out."""
    requested: int
    rows: int
    of: int
    """Usable rows, from which these are held out."""
    labels: dict[str, int] | None
    """Held-out rows per label, for the hundred most frequent labels; None if rows have no labels."""
    group: str | None
    """The column by which rows are grouped; a group is never split."""
    groups: int | None
    groups_in_all: int | None
    by_default: bool = False
    """Nobody asked for them."""

    def counts(self) -> str:
        """Describe the hold-out as a phrase that follows "held out"."""
        text = f"{self.rows:,} of {self.of:,} rows"
        text += f" by seed {self.seed}" if self.order == "seed" else ", the last of each source"
        if self.group is not None:
            text += (
                f", {self.groups:,} of {self.groups_in_all:,} groups by {self.group} (requested: {self.requested:,})"
            )
        if self.labels:
            listed = some((f"{one_line(label)} {count:,}" for label, count in self.labels.items()), 8)
            text += f"{', stratified' if self.order == 'seed' else ''} by label: {listed}"
        return f"{text} (by default; --held-out 0 trains on all rows)" if self.by_default else text
