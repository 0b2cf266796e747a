"""The rows of a planned classifier: a text or a pair of texts each, with one target, and without a chat template.

Their tokens are those that training counts (text/encode_texts.py): the model's `tokenizer.json` puts its special tokens
around them. Where it is not on this machine, tokens are taken from characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rankwise.config.data import DataConfig
from rankwise.data.sample import Sample, Seen, sample_rows
from rankwise.errors import DataError
from rankwise.planning.planned_rows import opened, refuse_unread, tokenizer_in
from rankwise.planning.planned_template import settings_in
from rankwise.planning.rows import CHARACTERS, Counted, Drawn, PlannedRows, planned_rows, together, without_held_out
from rankwise.text.targets import texts_of

Pair = tuple[str, str]
CountPairs = Callable[[Sequence[Pair]], list[int]]
"""The tokens of each text or pair of texts, with the special tokens around them."""
AROUND = 2
"""Special tokens around a text, where no tokenizer is here to count them; a second text has one more."""
TARGET = 1
"""A row has one target, which its loss is of."""


def labelled_rows_of(spec: DataConfig, model: Path | None = None, context: int | None = None) -> PlannedRows:
    """`model` is the model's folder or GGUF file, if it is here, and `context` the longest text that it reads."""
    settings, file = settings_in(model), tokenizer_in(model)
    exact = file is not None
    count = by_characters if file is None else by_tokenizer(file, joins=not settings.get("sep_token"))
    seen = [(source, sample_rows(spec, source)) for source in spec.all_sources]
    if spec.on_bad_row == "stop":
        refuse_unread([sample for _, sample in seen])
    longest = settings.get("model_max_length")
    limit = min(spec.max_length, context or spec.max_length, longest if isinstance(longest, int) else spec.max_length)
    too_long = "cut-prompt" if spec.too_long == "truncate" else spec.too_long  # a row that is cut keeps its target
    parts = [
        planned_rows(_counted(sample, count, exact=exact), limit=limit, too_long=too_long, weight=source.weight)
        for source, sample in seen
    ]
    return without_held_out(together(parts), spec)


def by_characters(pairs: Sequence[Pair]) -> list[int]:
    return [round((len(text) + len(pair)) / CHARACTERS) + AROUND + bool(pair) for text, pair in pairs]


def by_tokenizer(path: Path, *, joins: bool) -> CountPairs:
    """`joins`: two texts are joined by a blank line, since the tokenizer has no separator."""
    tokenizer = opened(path)
    tokenizer.encode_special_tokens = True

    def count(pairs: Sequence[Pair]) -> list[int]:
        inputs = ["\n\n".join(filter(None, pair)) if joins or not pair[1] else pair for pair in pairs]
        return [len(encoded) for encoded in tokenizer.encode_batch_fast(inputs, add_special_tokens=True)]

    return count


def _counted(sample: Sample, count: CountPairs, *, exact: bool) -> Counted:
    drawn, largest = (_drawn(rows, count) for rows in (sample.drawn, sample.largest))
    longest = max((document.tokens for document in (*drawn, *largest)), default=0)
    read = len(sample.drawn) + sample.unread
    whole = read == sample.rows == sample.rows_in_files
    return Counted(sample.rows, sample.size, read, whole, tuple(drawn), longest, exact)


def _drawn(rows: Sequence[Seen], count: CountPairs) -> list[Drawn]:
    """Rows without a text and a label are left out; training refuses them, or leaves them out too."""
    pairs: list[tuple[Seen, Pair]] = []
    for row in rows:
        for example in row.examples:
            try:
                pairs.append((row, texts_of(example)))
            except DataError:
                continue
    counts = count([pair for _, pair in pairs])
    return [Drawn(tokens, TARGET, row.size / len(row.examples)) for (row, _), tokens in zip(pairs, counts, strict=True)]
