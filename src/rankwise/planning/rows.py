"""The rows of a planned training: some of them are read, and their tokens counted; with replay others are among them.

What a document is, and what of it is learned, differs by what is trained:

    conversations   as the chat template writes them; the answers are learned, and of a plain text all
    labelled        a text or a pair of texts, with one target
    an input with its output     each with the special tokens around it; the output is learned
    images          counted and not decoded: as many tokens as an image has patches (config/images.py)

Answers of the base that are not written yet are taken to be as long as those of SmolLM2-135M-Instruct: 92 of at most
128 tokens in the mean of 64.

The tokens of all rows are estimated from the rows that were drawn, by the ratio of tokens to size: N rows of size X in
all, n drawn with tokens t and sizes x, R = sum t / sum x,

    T = R X,    standard error = N sqrt((1 - n / N) / n) s,    s^2 = sum (t - R x)^2 / (n - 1),

or by their mean where that is the more certain (rows that are left out for their length have no tokens, however large).
The interval is 95 %. Where tokens were not counted but taken from characters, it is as wide as that guess besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from typing import Self

from rankwise.config.data import DataConfig, TooLong
from rankwise.config.experiment import Planned
from rankwise.config.forgetting import ANSWER_TOKENS, replay_rows
from rankwise.config.recipe import recipe_named
from rankwise.config.training import TrainingConfig
from rankwise.errors import DataError, TemplateError
from rankwise.planning.estimate import Estimate
from rankwise.planning.operations import Load
from rankwise.planning.shape import ModelShape
from rankwise.planning.tasks import CLASSIFIER, IMAGE_CLASSIFIER, SEQUENCES, TAGGER
from rankwise.planning.tokens import TokenCounter
from rankwise.rows.files.hub import HUB
from rankwise.rows.instructions import instructions
from rankwise.rows.sample import RowSample, SeenRows, sample_rows
from rankwise.rows.sources import open_source, raw_records
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.targets import input_and_output, texts_of
from rankwise.rows.text.template_process import plain_conversation, render_conversations
from rankwise.runs.own_files import data_here, folder_of, read_experiment

UNKNOWN_LENGTH = 1024
"""Tokens of a document, where no rows are given and no limit is."""
NORMAL = 1.96
"""Standard errors on either side that hold 95 %."""
OF_GUESSED = Estimate(0.9, 1.0, 1.6)
"""How many times the tokens guessed from characters the real ones may be: 0.96 (LIMA) to 1.54 times (GSM8K, where each
digit is a token) on eight English data sets, by the starter's tokenizer and template, which adds a system message of
its own (lab/characters.py, lab/LOG.md). Other languages, and code, have fewer characters a token."""
MOST_REPEATED = 20
"""How often a drawn document stands for its source beside those of another."""
WRITTEN_SHARE = 0.72
"""How long an answer of the base model is assumed to be, as a share of the tokens that it may have."""
AROUND_MESSAGE, AFTER_ANSWER = 5, 1
"""Tokens that a template adds where it is not known: in ChatML `<|im_start|>`, the role, a line break, `<|im_end|>` and
a line break. Of these the end of an answer is learned."""
AROUND_LABELLED, AROUND_SEQUENCE = 2, 1
"""Special tokens around a text, where no tokenizer is here to count them; a second text has one more."""
TARGET = 1
"""A labelled row has one target, which its loss is of."""
IMAGES = 300
"""Images of each source that stand for all."""

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Special tokens that a template is given by name."""
ARROW = (".parquet", ".arrow")


@dataclass(frozen=True)
class Drawn:
    """One document of the rows that were read: the tokens of each of its texts, those of them that are learned, and the
    size of its row. A pair of conversations has two texts, and so has an input with its output."""

    texts: tuple[int, ...]
    supervised: int
    size: float

    @property
    def tokens(self) -> int:
        return sum(self.texts)

    @property
    def longer(self) -> int:
        """Tokens of its longest text, which the largest length applies to."""
        return max(self.texts)

    def within(self, limit: int, too_long: TooLong) -> Drawn:
        """As it is trained on; nothing of it is learned where it is left out."""
        if self.longer <= limit or too_long == "split":
            return self
        texts = tuple(min(text, limit) for text in self.texts)
        supervised = 0 if too_long == "drop" else min(self.supervised, limit)
        if too_long == "truncate":
            supervised = max(0, self.supervised - self.tokens + sum(texts))
        return replace(self, texts=texts if supervised else (0,), supervised=supervised)


@dataclass(frozen=True)
class Counted:
    """What was read of a source. `rows` and `size` are of all its rows that are asked for, `documents` of the drawn."""

    rows: int
    size: float
    drawn_rows: int
    is_complete: bool
    """Whether the drawn rows are those that are asked for."""
    documents: Sequence[Drawn]
    exact: bool
    """Whether tokens were counted by the model's tokenizer."""
    largest: Sequence[Drawn] = ()
    """Documents of the largest rows."""
    arrow: bool = False
    """Whether pyarrow reads them."""

    def longest(self, limit: int) -> tuple[int, int]:
        """Tokens of the longest document that may be trained on, and of the longest text."""
        seen = [*self.documents, *self.largest] or [Drawn((0,), 0, 0.0)]
        most = limit * max(len(document.texts) for document in seen)
        return min(most, max(one.tokens for one in seen)), min(limit, max(one.longer for one in seen))


@dataclass(frozen=True)
class PlannedRows:
    documents: Estimate
    """That are trained on in one pass, each as often as its source's weight says."""
    tokens: Estimate
    supervised: Estimate
    too_long: float
    """Documents that are left out for their length, cut or split."""
    longest: int
    """Tokens of the longest document that may be trained on: the longest that was seen, or the limit."""
    longest_text: int
    drawn: tuple[Drawn, ...]
    """The documents that were drawn and are trained on, the shortest first."""
    exact: bool
    """All rows were read, and their tokens counted by the model's own tokenizer. A template's own tokens are near."""
    replayed: float = 0.0
    """Documents among them that are replay rows."""
    held_out: int = 0
    """Documents that are kept to measure with; not among the others."""
    arrow: bool = False
    """Whether pyarrow reads them."""

    @property
    def count(self) -> int:
        """Documents of one pass, as training counts them."""
        return max(1, round(self.documents.likely))

    @property
    def lengths(self) -> list[int]:
        return [document.tokens for document in self.drawn]

    @property
    def median(self) -> int:
        """The median over all documents of the tokens in the longest text of each; 0 without documents."""
        ordered = sorted(document.longer for document in self.drawn)
        return ordered[len(ordered) // 2] if ordered else 0

    @property
    def of_pairs(self) -> bool:
        return {len(document.texts) for document in self.drawn} == {2}

    @property
    def supervised_share(self) -> float:
        return self.supervised.likely / self.tokens.likely if self.tokens.likely else 0.0

    @property
    def error(self) -> float:
        """The larger half of the interval of tokens, as a share."""
        likely = self.tokens.likely
        return max(self.tokens.high - likely, likely - self.tokens.low) / likely if likely else 0.0

    def steps(self, training: TrainingConfig) -> int:
        return training.total_steps(self.count)

    def shorter(self, limit: int) -> PlannedRows:
        """Without the documents that are longer, as far as those that were drawn tell."""
        drawn = tuple(document for document in self.drawn if document.tokens <= limit)
        left = self.share(sum(document.tokens for document in drawn) / max(1, sum(self.lengths)))
        return replace(left, drawn=drawn, longest=min(limit, self.longest))

    def share(self, left: float) -> PlannedRows:
        """The share `left` of these rows, in which all lengths are as frequent as before."""
        return replace(
            self, documents=self.documents.times(left), tokens=self.tokens.times(left),
            supervised=self.supervised.times(left), replayed=self.replayed * left,
        )  # fmt: skip

    @property
    def load(self) -> Load:
        """What was drawn, as a sample of what goes through the model: every text by itself."""
        lengths = tuple(text for document in self.drawn for text in document.texts)
        return Load(lengths, self.supervised_share * sum(lengths))


def planned_rows(read: Counted, *, limit: int, too_long: TooLong = "drop", weight: float = 1.0) -> PlannedRows:
    """`limit` is the largest length of a text."""
    fitted = [document.within(limit, too_long) for document in read.documents]
    documents = _of_all([float(one.supervised > 0) for one in fitted], read)
    low, high = (1.0, 1.0) if read.exact else (OF_GUESSED.low, OF_GUESSED.high)  # of the characters of a token
    tokens, supervised = (
        Estimate(one.low * low, one.likely, one.high * high)
        for values in ([one.tokens for one in fitted], [one.supervised for one in fitted])
        for one in [_of_all(values, read)]
    )
    over = sum(document.longer > limit for document in read.documents)
    return PlannedRows(
        documents.times(weight), tokens.times(weight), supervised.times(weight),
        over * weight * (1 if read.is_complete else read.rows / read.drawn_rows), *read.longest(limit),
        _sorted(one for one in fitted if one.supervised), exact=read.is_complete and read.exact, arrow=read.arrow,
    )  # fmt: skip


def joined_rows(parts: Sequence[PlannedRows]) -> PlannedRows:
    """Several sources as one; each gives as many of its drawn documents as its share of all asks for."""
    if len(parts) == 1:
        return parts[0]
    shares = [part.documents.likely / max(1, len(part.drawn)) for part in parts]
    least = max(1e-9, min((share for share in shares if share), default=1.0))
    drawn = [
        document
        for part, share in zip(parts, shares, strict=True)
        for document in part.drawn * max(1, min(MOST_REPEATED, round(share / least)))
    ]
    documents, tokens, supervised = (
        reduce(Estimate.plus, [getattr(part, name) for part in parts]) for name in ("documents", "tokens", "supervised")
    )
    return PlannedRows(
        documents, tokens, supervised, too_long=sum(part.too_long for part in parts),
        longest=max(part.longest for part in parts),
        longest_text=max(part.longest_text for part in parts), drawn=_sorted(drawn),
        exact=all(part.exact for part in parts),
        held_out=parts[0].held_out, arrow=any(part.arrow for part in parts),
    )  # fmt: skip


def without_held_out(rows: PlannedRows, config: DataConfig) -> PlannedRows:
    """The rows that are kept to measure with are not trained on."""
    documents = rows.documents.likely
    held_out = config.held_out_of(round(documents))
    left = rows.share(max(0.0, 1 - held_out / documents) if documents else 0.0)
    return replace(left, held_out=held_out)


def _sorted(documents: Iterable[Drawn]) -> tuple[Drawn, ...]:
    return tuple(sorted(documents, key=lambda item: (item.tokens, item.supervised)))


def _of_all(values: Sequence[float], read: Counted) -> Estimate:
    """Estimate a total over all rows from `values`, which has one value for each drawn document."""
    drawn, rows, sizes = read.drawn_rows, read.rows, [document.size for document in read.documents]
    total = sum(values)
    if read.is_complete or not total:
        return Estimate.exactly(total)
    ratio = total / sum(sizes) if sum(sizes) else 0.0
    mean = total / len(values)
    spreads = (
        (ratio * read.size, _deviation([value - ratio * size for value, size in zip(values, sizes, strict=True)])),
        (total * rows / drawn, _deviation([value - mean for value in values])),
    )
    estimate, deviation = min(spreads, key=lambda spread: spread[1]) if ratio else spreads[1]
    documents, unseen = rows * len(values) / drawn, 1 - drawn / rows
    error = deviation * (documents * math.sqrt(unseen / len(values)) if unseen > 0 else math.sqrt(documents))
    return Estimate.within(estimate, NORMAL * error, least=total if unseen > 0 else 0.0)


def _deviation(residuals: Sequence[float]) -> float:
    return math.sqrt(sum(residual**2 for residual in residuals) / max(1, len(residuals) - 1))


Documents = Callable[[Sequence[SeenRows]], list[Drawn]]
"""The documents of rows that were read."""
Conversation = tuple[Example, tuple[Message, ...]]
Pair = tuple[str, str]


def limit_of(config: Planned, shape: ModelShape) -> int:
    """Tokens of the longest text."""
    limit = UNKNOWN_LENGTH if config.data is None else config.data.max_length
    return min(limit, shape.context or limit)


def rows_of_training(config: Planned, shape: ModelShape, tokens: TokenCounter) -> PlannedRows | None:
    """None where no data is named. DataError where no row is left to train on."""
    if config.data is None:
        return None
    data, limit = config.objective_settings.rows(config.data), limit_of(config, shape)
    read = READERS.get(shape.auto_class, lambda data, _, tokens, limit: conversations_of(data, tokens, limit))
    rows = read(data, shape, tokens, limit)
    if rows.documents.likely <= 0:
        raise DataError(
            f"no row is left for training: every row is longer than {limit:,} tokens, is a validation row, or has no "
            f"{shape.task.learns} to learn. Raise --max-length, or give other rows."
        )
    return _with_replay(rows, config, tokens, limit)


READERS: Mapping[str, Callable[[DataConfig, ModelShape, TokenCounter, int], PlannedRows]] = {
    SEQUENCES: lambda config, _, tokens, limit: fixed_rows_of(config, tokens, limit, labelled=False),
    CLASSIFIER: lambda config, _, tokens, limit: fixed_rows_of(config, tokens, limit, labelled=True),
    TAGGER: lambda config, _, tokens, limit: fixed_rows_of(config, tokens, limit, labelled=True),
    IMAGE_CLASSIFIER: lambda config, shape, *_: images_of(config, shape.patches),
}
"""By the class of transformers; every other model reads conversations."""


def conversations_of(config: DataConfig, tokens: TokenCounter, limit: int) -> PlannedRows:
    return _read(config, Conversations.of(config, tokens), limit, config.too_long, exact=tokens.exact)


def fixed_rows_of(config: DataConfig, tokens: TokenCounter, limit: int, *, labelled: bool) -> PlannedRows:
    """Rows without a chat template: labelled texts, or inputs with their outputs."""
    longest = tokens.settings.get("model_max_length") if labelled else None
    limit = min(limit, longest) if isinstance(longest, int) else limit
    too_long = "cut-prompt" if config.too_long == "truncate" else config.too_long  # what is cut keeps what is learned
    documents = labelled_texts if labelled else inputs_with_outputs
    return _read(config, lambda rows: documents(rows, tokens), limit, too_long, exact=tokens.exact)


def _read(config: DataConfig, documents: Documents, limit: int, too_long: TooLong, *, exact: bool) -> PlannedRows:
    samples = [sample_rows(config, source) for source in config.all_sources]
    problems = [problem for sample in samples for problem in sample.problems]
    if problems and config.on_bad_row == "stop":
        count = sum(sample.unread for sample in samples)
        raise DataError(
            f"{count} of the sampled rows cannot be read, so training on them would stop with an error: {problems[0]}"
        )
    parts = [
        planned_rows(counted(sample, documents, exact=exact), limit=limit, too_long=too_long, weight=source.weight)
        for sample, source in zip(samples, config.all_sources, strict=True)
    ]
    return without_held_out(joined_rows(parts), config)


def counted(sample: RowSample, documents: Documents, *, exact: bool) -> Counted:
    read = len(sample.drawn) + sample.unread
    whole = read == sample.rows == sample.rows_in_files
    drawn, largest = documents(sample.drawn), documents(sample.largest)
    return Counted(sample.rows, sample.size, read, is_complete=whole, documents=drawn, exact=exact, largest=largest)


@dataclass(frozen=True)
class Conversations:
    """Conversations and plain texts. `template` writes them; None where it is not known."""

    tokens: TokenCounter
    template: str | None = None
    reasons: bool = False
    everything: bool = False
    """Whether all tokens are learned."""

    @classmethod
    def of(cls, config: DataConfig, tokens: TokenCounter) -> Self:
        template = tokens.template if config.recipe is None else recipe_named(config.recipe).template
        known = template if tokens.exact else None
        return cls(tokens, known, config.reasoning != "none", config.learned == "everything")

    def __call__(self, rows: Sequence[SeenRows]) -> list[Drawn]:
        examples = [(row.size / len(row.examples), example) for row in rows for example in row.examples]
        written = iter(self._rendered([(one, turns) for _, one in examples for turns in one.conversations]))
        drawn = []
        for size, example in examples:
            counts = [self._count(example, turns, next(written)) for turns in example.conversations]
            texts, learned = zip(*counts, strict=True)
            drawn.append(Drawn(texts, sum(texts if self.everything else learned), size))
        return drawn

    def _count(self, example: Example, turns: Sequence[Message], text: str | None) -> tuple[int, int]:
        """The tokens of a conversation, and those of them that are learned."""
        if example.text is not None:
            length = sum(self.tokens.count([example.text])) + AFTER_ANSWER
            return length, length
        answers = [_text(turn) for turn in turns if turn.role == "assistant" and turn.learned]
        learned = sum(self.tokens.count(answers)) + AFTER_ANSWER * len(answers)
        if text is not None:
            return sum(self.tokens.count([text])), learned
        return sum(self.tokens.count([*map(_text, turns)])) + AROUND_MESSAGE * len(turns), learned

    def _rendered(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """What the template makes of each; None where it cannot, and of plain texts."""
        if self.template is None or not any(turns for _, turns in conversations):
            return [None] * len(conversations)
        special = {name: self.tokens.special(name) for name in SPECIAL} | {"enable_thinking": self.reasons}
        shows = "context" in self.template
        plain = [
            plain_conversation(turns, example.tools, [(len(turns), False)], str, shows_context=shows)
            for example, turns in conversations
        ]
        results = [result for (result,) in render_conversations(self.template, special, plain)]
        return [
            None if isinstance(result, TemplateError) or not turns else result[0]
            for result, (_, turns) in zip(results, conversations, strict=True)
        ]


def _text(message: Message) -> str:
    return message.text + "".join(f"{call.name}{call.arguments}" for call in message.tool_calls)


def labelled_texts(rows: Sequence[SeenRows], tokens: TokenCounter) -> list[Drawn]:
    read = list(_readable(rows, texts_of))
    counts = tokens.count_whole([pair for _, pair in read], AROUND_LABELLED)
    return [Drawn((count,), TARGET, size) for (size, _), count in zip(read, counts, strict=True)]


def inputs_with_outputs(rows: Sequence[SeenRows], tokens: TokenCounter) -> list[Drawn]:
    read = list(_readable(rows, input_and_output))
    counts = iter(tokens.count_whole([(text, "") for _, pair in read for text in pair], AROUND_SEQUENCE))
    both = zip(counts, counts, strict=True)
    return [Drawn(texts, texts[1], size) for (size, _), texts in zip(read, both, strict=True)]


def _readable(rows: Sequence[SeenRows], texts_in: Callable[[Example], Pair]) -> Iterator[tuple[float, Pair]]:
    """The size of each document and its texts, but of rows without them, which training refuses or leaves out too."""
    for row in rows:
        for example in row.examples:
            with suppress(DataError):
                yield row.size / len(row.examples), texts_in(example)


def images_of(config: DataConfig, patches: int) -> PlannedRows:
    parts = []
    for source in config.all_sources:
        opened = open_source(config, source).parts
        count = sum(not isinstance(row, DataError) for part in opened for _, row in raw_records(part))
        count = count if source.rows is None else min(count, source.rows)
        drawn = [Drawn((patches,), TARGET, 1.0)] * min(count, IMAGES)
        arrow = any(part.name.startswith(HUB) or part.name.lower().endswith(ARROW) for part in opened)
        read = Counted(count, count, len(drawn), False, drawn, True, arrow=arrow)
        parts.append(planned_rows(read, limit=patches, weight=source.weight))
    return without_held_out(joined_rows(parts), config)


def _with_replay(rows: PlannedRows, config: Planned, tokens: TokenCounter, limit: int) -> PlannedRows:
    replay, data = config.training.replay, config.data
    if replay is None or data is None:
        return rows
    among = replay.rows_among(round(rows.documents.likely))
    if replay.data is None:
        others = _answers(data, tokens, limit)
    else:
        run = replay.data.run
        folder = None if run is None else folder_of(run)
        source = replay_rows(replay.data, data) if folder is None else data_here(read_experiment(folder).data, folder)
        others = conversations_of(source, tokens, min(limit, source.max_length))
    count = others.documents.likely
    if not count:
        return rows
    mixed = joined_rows([rows, replace(others.share(among / count), too_long=0.0)])
    return replace(mixed, replayed=float(among))


def _answers(config: DataConfig, tokens: TokenCounter, limit: int) -> PlannedRows:
    """The base's answers to the general instructions, one to each."""
    written = round(WRITTEN_SHARE * ANSWER_TOKENS)
    asked = [SeenRows(1, (Example((Message("user", text), Message("assistant", "")), ""),)) for text in instructions()]
    drawn = [Drawn((one.tokens + written,), written, 1.0) for one in Conversations.of(config, tokens)(asked)]
    read = Counted(len(drawn), len(drawn), len(drawn), True, drawn, False)
    return planned_rows(read, limit=limit, too_long="truncate")
