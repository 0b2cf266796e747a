"""The rows of a planned training: some of them are read, and their tokens counted; with replay others are among them.

What a document is, and what of it is learned, differs by what is trained:

    conversations   as the chat template writes them; the answers are learned, and of a plain text all
    labelled        a text or a pair of texts, with one target
    an input with its output     each with the special tokens around it; the output is learned
    images          counted and not decoded: as many tokens as an image has patches (config/images.py)

Answers of the base that are not written yet are taken to be as long as those of SmolLM2-135M-Instruct: 92 of at most
128 tokens in the mean of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from rankwise.config.data import DataConfig, TooLong
from rankwise.config.experiment import Planned
from rankwise.config.forgetting import ANSWER_TOKENS, replay_rows
from rankwise.config.recipe import recipe_named
from rankwise.errors import DataError, TemplateError
from rankwise.planning.batches import limit_of
from rankwise.planning.rows import Counted, Drawn, PlannedRows, planned_rows, together, without_held_out
from rankwise.planning.shape import ModelShape
from rankwise.planning.tasks import CLASSIFIER, IMAGE_CLASSIFIER, SEQUENCES, TAGGER
from rankwise.planning.tokens import TokenCounter
from rankwise.rows.files.hub import HUB
from rankwise.rows.instructions import instructions
from rankwise.rows.sample import Sample, Seen, sample_rows
from rankwise.rows.sources import open_source, raw_records
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.targets import input_and_output, texts_of
from rankwise.rows.text.template_process import plain_conversation, render_conversations
from rankwise.runs.own_files import data_here, folder_of, read_experiment

WRITTEN = 0.72
"""Of the tokens that an answer may have."""
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
Documents = Callable[[Sequence[Seen]], list[Drawn]]
"""The documents of rows that were read."""
Conversation = tuple[Example, tuple[Message, ...]]
Pair = tuple[str, str]


def rows_of_training(config: Planned, shape: ModelShape, tokens: TokenCounter) -> PlannedRows | None:
    """None where no data is named. DataError where no row is left to train on."""
    if config.data is None:
        return None
    data, limit = config.objective_settings.rows(config.data), limit_of(config, shape)
    read = READERS.get(shape.auto_class, lambda spec, _, tokens, limit: conversations_of(spec, tokens, limit))
    rows = read(data, shape, tokens, limit)
    if rows.documents.likely <= 0:
        raise DataError(
            f"no row is left for training: every row is longer than {limit:,} tokens, is a validation row, or has no "
            f"{shape.task.learns} to learn. Raise --max-length, or give other rows."
        )
    return _with_replay(rows, config, tokens, limit)


READERS: Mapping[str, Callable[[DataConfig, ModelShape, TokenCounter, int], PlannedRows]] = {
    SEQUENCES: lambda spec, _, tokens, limit: fixed_rows_of(spec, tokens, limit, labelled=False),
    CLASSIFIER: lambda spec, _, tokens, limit: fixed_rows_of(spec, tokens, limit, labelled=True),
    TAGGER: lambda spec, _, tokens, limit: fixed_rows_of(spec, tokens, limit, labelled=True),
    IMAGE_CLASSIFIER: lambda spec, shape, *_: images_of(spec, shape.patches),
}
"""By the class of transformers; every other model reads conversations."""


def conversations_of(spec: DataConfig, tokens: TokenCounter, limit: int) -> PlannedRows:
    return _read(spec, Conversations.of(spec, tokens), limit, spec.too_long, exact=tokens.exact)


def fixed_rows_of(spec: DataConfig, tokens: TokenCounter, limit: int, *, labelled: bool) -> PlannedRows:
    """Rows without a chat template: labelled texts, or inputs with their outputs."""
    longest = tokens.settings.get("model_max_length") if labelled else None
    limit = min(limit, longest) if isinstance(longest, int) else limit
    too_long = "cut-prompt" if spec.too_long == "truncate" else spec.too_long  # what is cut keeps what is learned
    documents = labelled_texts if labelled else inputs_with_outputs
    return _read(spec, lambda rows: documents(rows, tokens), limit, too_long, exact=tokens.exact)


def _read(spec: DataConfig, documents: Documents, limit: int, too_long: TooLong, *, exact: bool) -> PlannedRows:
    samples = [sample_rows(spec, source) for source in spec.all_sources]
    problems = [problem for sample in samples for problem in sample.problems]
    if problems and spec.on_bad_row == "stop":
        count = sum(sample.unread for sample in samples)
        raise DataError(
            f"{count} of the sampled rows cannot be read, so training on them would stop with an error: {problems[0]}"
        )
    parts = [
        planned_rows(counted(sample, documents, exact=exact), limit=limit, too_long=too_long, weight=source.weight)
        for sample, source in zip(samples, spec.all_sources, strict=True)
    ]
    return without_held_out(together(parts), spec)


def counted(sample: Sample, documents: Documents, *, exact: bool) -> Counted:
    read = len(sample.drawn) + sample.unread
    whole = read == sample.rows == sample.rows_in_files
    drawn, largest = documents(sample.drawn), documents(sample.largest)
    return Counted(sample.rows, sample.size, read, whole, drawn, exact, largest)


@dataclass(frozen=True)
class Conversations:
    """Conversations and plain texts. `template` writes them; None where it is not known."""

    tokens: TokenCounter
    template: str | None = None
    reasons: bool = False
    everything: bool = False
    """Whether all tokens are learned."""

    @classmethod
    def of(cls, spec: DataConfig, tokens: TokenCounter) -> Self:
        template = tokens.template if spec.recipe is None else recipe_named(spec.recipe).template
        known = template if tokens.exact else None
        return cls(tokens, known, spec.reasoning != "none", spec.learned == "everything")

    def __call__(self, rows: Sequence[Seen]) -> list[Drawn]:
        examples = [(row.size / len(row.examples), example) for row in rows for example in row.examples]
        written = iter(self._written([(one, turns) for _, one in examples for turns in one.conversations]))
        drawn = []
        for size, example in examples:
            counts = [self._count(example, turns, next(written)) for turns in example.conversations]
            texts, learned = zip(*counts, strict=True)
            drawn.append(Drawn(texts, sum(texts if self.everything else learned), size))
        return drawn

    def _count(self, example: Example, turns: Sequence[Message], written: str | None) -> tuple[int, int]:
        """The tokens of a conversation, and those of them that are learned."""
        if example.text is not None:
            length = sum(self.tokens.count([example.text])) + AFTER_ANSWER
            return length, length
        answers = [_text(turn) for turn in turns if turn.role == "assistant" and turn.learned]
        learned = sum(self.tokens.count(answers)) + AFTER_ANSWER * len(answers)
        if written is not None:
            return sum(self.tokens.count([written])), learned
        return sum(self.tokens.count([*map(_text, turns)])) + AROUND_MESSAGE * len(turns), learned

    def _written(self, conversations: Sequence[Conversation]) -> list[str | None]:
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
    return message.whole + "".join(f"{call.name}{call.arguments}" for call in message.tool_calls)


def labelled_texts(rows: Sequence[Seen], tokens: TokenCounter) -> list[Drawn]:
    read = list(_readable(rows, texts_of))
    counts = tokens.count_whole([pair for _, pair in read], AROUND_LABELLED)
    return [Drawn((count,), TARGET, size) for (size, _), count in zip(read, counts, strict=True)]


def inputs_with_outputs(rows: Sequence[Seen], tokens: TokenCounter) -> list[Drawn]:
    read = list(_readable(rows, input_and_output))
    counts = iter(tokens.count_whole([(text, "") for _, pair in read for text in pair], AROUND_SEQUENCE))
    both = zip(counts, counts, strict=True)
    return [Drawn(texts, texts[1], size) for (size, _), texts in zip(read, both, strict=True)]


def _readable(rows: Sequence[Seen], texts_in: Callable[[Example], Pair]) -> Iterator[tuple[float, Pair]]:
    """The size of each document and its texts, but of rows without them, which training refuses or leaves out too."""
    for row in rows:
        for example in row.examples:
            with suppress(DataError):
                yield row.size / len(row.examples), texts_in(example)


def images_of(spec: DataConfig, patches: int) -> PlannedRows:
    parts = []
    for source in spec.all_sources:
        opened = open_source(spec, source).parts
        count = sum(not isinstance(row, DataError) for part in opened for _, row in raw_records(part))
        count = count if source.rows is None else min(count, source.rows)
        drawn = [Drawn((patches,), TARGET, 1.0)] * min(count, IMAGES)
        arrow = any(part.name.startswith(HUB) or part.name.lower().endswith(ARROW) for part in opened)
        read = Counted(count, count, len(drawn), False, drawn, True, arrow=arrow)
        parts.append(planned_rows(read, limit=patches, weight=source.weight))
    return without_held_out(together(parts), spec)


def _with_replay(own: PlannedRows, config: Planned, tokens: TokenCounter, limit: int) -> PlannedRows:
    replay, data = config.training.replay, config.data
    if replay is None or data is None:
        return own
    among = replay.rows_among(round(own.documents.likely))
    if replay.data is None:
        others = _answers(tokens, limit)
    else:
        run = replay.data.run
        folder = None if run is None else folder_of(run)
        source = replay_rows(replay.data, data) if folder is None else data_here(read_experiment(folder), folder)
        others = conversations_of(source, tokens, min(limit, source.max_length))
    count = others.documents.likely
    if not count:
        return own
    mixed = together([own, replace(others.share(among / count), too_long=0.0)])
    return replace(mixed, replayed=float(among))


def _answers(tokens: TokenCounter, limit: int) -> PlannedRows:
    """The base's answers to the general instructions, one to each."""
    written = round(WRITTEN * ANSWER_TOKENS)
    counts = tokens.count(instructions())
    drawn = [Drawn((2 * AROUND_MESSAGE + count + written,), written, 1.0) for count in counts]
    return planned_rows(
        Counted(len(drawn), len(drawn), len(drawn), True, drawn, False), limit=limit, too_long="truncate"
    )
