"""The rows of a plan: some of them read and their tokens counted, without torch and without transformers.

Tokens are counted by the model's `tokenizer.json`, or the tokenizer in its GGUF file, where there is one, else taken
from characters. What the chat template adds is counted on short conversations (planned_template.py), not on each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.data.sample import Sample, Seen, sample_rows
from rankwise.errors import DataError, ModelError, first_line
from rankwise.planning.gguf_tokenizer import gguf_tokenizer, holds_tokenizer
from rankwise.planning.planned_template import Around, Count, around_of
from rankwise.planning.rows import (
    AFTER_ANSWER,
    CHARACTERS,
    Counted,
    Drawn,
    PlannedRows,
    planned_rows,
    together,
    without_held_out,
)
from rankwise.text.example import Example, Message

LONG = 20_000
"""Characters of a text that are counted; what follows is taken to be like it."""


def rows_of(spec: DataConfig, model: Path | None = None, context: int | None = None) -> PlannedRows:
    """`model` is the model's folder or GGUF file, if it is here: its tokenizer and its chat template are read.
    `context` is the longest text that the model reads."""
    count, exact = counting(model)
    found = [(source, sample_rows(spec, source)) for source in spec.all_sources]
    if spec.on_bad_row == "stop":
        refuse_unread([seen for _, seen in found])
    talks = any(example.text is None for _, seen in found for row in seen.drawn for example in row.examples)
    around = around_of(spec, model, count) if exact and talks else Around()
    limit = min(spec.max_length, context or spec.max_length)
    parts = []
    for source, seen in found:
        read = counted(seen, count, around, exact=exact, everything=spec.learned == "everything")
        parts.append(planned_rows(read, limit=limit, too_long=spec.too_long, weight=source.weight))
    return without_held_out(together(parts), spec)


def counting(model: Path | None) -> tuple[Count, bool]:
    """How tokens are counted, and whether it is exact: by the tokenizer in the model's folder or GGUF file, or from
    characters."""
    tokenizer = tokenizer_in(model)
    return (by_characters, False) if tokenizer is None else (by_tokenizer(tokenizer), True)


def tokenizer_in(model: Path | None) -> Path | None:
    """The file that a tokenizer is read from."""
    file = None if model is None else model if holds_tokenizer(model) else model / "tokenizer.json"
    return file if file is not None and file.is_file() else None


def refuse_unread(samples: Sequence[Sample]) -> None:
    """As a training does."""
    problems = [problem for seen in samples for problem in seen.problems]
    if problems:
        count = sum(seen.unread for seen in samples)
        raise DataError(
            f"{count} of the sampled rows cannot be read, so training on them would stop with an error: {problems[0]}"
        )


def counted(seen: Sample, count: Count, around: Around, *, exact: bool, everything: bool = False) -> Counted:
    drawn, largest = (_drawn(rows, count, around, everything) for rows in (seen.drawn, seen.largest))
    longest = max((document.tokens for document in (*drawn, *largest)), default=0)
    read = len(seen.drawn) + seen.unread
    return Counted(seen.rows, seen.size, read, read == seen.rows == seen.rows_in_files, tuple(drawn), longest, exact)


def by_characters(texts: Sequence[str]) -> list[int]:
    return [round(len(text) / CHARACTERS) for text in texts]


def opened(path: Path) -> Any:
    """A tokenizer.json, or the tokenizer in a GGUF file, that counts whole texts."""
    from tokenizers import Tokenizer

    try:
        tokenizer = gguf_tokenizer(path) if holds_tokenizer(path) else Tokenizer.from_file(str(path))
    except ModelError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path}: cannot be read as a tokenizer: {first_line(error)}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def by_tokenizer(path: Path) -> Count:
    tokenizer = opened(path)

    def count(texts: Sequence[str]) -> list[int]:
        begun = [text[:LONG] for text in texts]
        encoded = tokenizer.encode_batch_fast(begun, add_special_tokens=False)
        pairs = zip(texts, begun, encoded, strict=True)
        return [round(len(one) * len(text) / max(1, len(first))) for text, first, one in pairs]

    return count


def _drawn(rows: Sequence[Seen], count: Count, around: Around, everything: bool) -> list[Drawn]:
    """All texts are counted at once, which is faster."""
    documents = [(row, example) for row in rows for example in row.examples]
    texts = [_texts(example) for _, example in documents]
    counts = iter(count([text for parts in texts for text in parts]))
    return [
        _document(row, example, [next(counts) for _ in parts], around, everything)
        for (row, example), parts in zip(documents, texts, strict=True)
    ]


def _texts(example: Example) -> list[str]:
    if example.text is not None:
        return [example.text]
    return [_message_text(message) for message in (*example.messages, *example.rejected)]


def _message_text(message: Message) -> str:
    calls = "".join(f"{call.name}{call.arguments}" for call in message.tool_calls)
    return message.whole + calls


def _document(row: Seen, example: Example, counts: Sequence[int], around: Around, everything: bool) -> Drawn:
    size = row.size / len(row.examples)
    if example.text is not None:
        return Drawn(counts[0] + AFTER_ANSWER, counts[0] + AFTER_ANSWER, size)
    first = len(example.messages)
    sides = [(example.messages, counts[:first]), (example.rejected, counts[first:])]
    read = [_conversation(example, turns, own, around) for turns, own in sides if turns]
    tokens, learned = sum(tokens for tokens, _ in read), sum(learned for _, learned in read)
    longer = max(tokens for tokens, _ in read) if example.rejected else None
    return Drawn(tokens, tokens if everything else learned, size, longer)


def _conversation(
    example: Example, turns: Sequence[Message], counts: Sequence[int], around: Around
) -> tuple[int, int]:  # fmt: skip
    """Its tokens, and those of them that are learned."""
    once = around.conversation if example.system is None else around.with_system
    learned = sum(
        found + AFTER_ANSWER
        for message, found in zip(turns, counts, strict=True)
        if message.role == "assistant" and message.learned
    )
    return round(sum(counts) + around.message * len(counts) + once), learned
