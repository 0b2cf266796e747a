"""The rows of a planned encoder with a decoder: an input and an output each, without a chat template.

Their tokens are those that training counts (text/encode_sequences.py): the model's `tokenizer.json` puts its special
tokens around each text, and each is compared with the largest length for itself. Where it is not on this machine,
tokens are taken from characters. A length that is told is that of the longer of both texts, as `data check` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rankwise.config.data import DataConfig
from rankwise.data.sample import Sample, Seen, sample_rows
from rankwise.errors import DataError
from rankwise.planning.planned_rows import opened, refuse_unread, tokenizer_in
from rankwise.planning.rows import CHARACTERS, Counted, Drawn, PlannedRows, planned_rows, together, without_held_out
from rankwise.text.sequences import input_and_output

CountTexts = Callable[[Sequence[str]], list[int]]
"""The tokens of each text, with the special tokens around it."""
AROUND = 1
"""Special tokens around a text, where no tokenizer is here to count them."""
Lengths = tuple[Seen, int, int]
"""A row, and the tokens of its input and of its output."""


def sequence_rows_of(spec: DataConfig, model: Path | None = None, context: int | None = None) -> PlannedRows:
    """`model` is the model's folder, if it is here, and `context` the longest text that the model reads or writes."""
    file = tokenizer_in(model)
    exact = file is not None
    count = by_characters if file is None else by_tokenizer(file)
    seen = [(source, sample_rows(spec, source)) for source in spec.all_sources]
    if spec.on_bad_row == "stop":
        refuse_unread([sample for _, sample in seen])
    limit = min(spec.max_length, context or spec.max_length)
    cut = spec.too_long == "truncate"
    parts = [_planned(sample, count, limit, source.weight, cut=cut, exact=exact) for source, sample in seen]
    return without_held_out(together(parts), spec)


def by_characters(texts: Sequence[str]) -> list[int]:
    return [round(len(text) / CHARACTERS) + AROUND for text in texts]


def by_tokenizer(path: Path) -> CountTexts:
    tokenizer = opened(path)
    tokenizer.encode_special_tokens = True
    return lambda texts: [len(one) for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)]


def _planned(sample: Sample, count: CountTexts, limit: int, weight: float, *, cut: bool, exact: bool) -> PlannedRows:
    drawn, largest = (_lengths(rows, count) for rows in (sample.drawn, sample.largest))
    every = (*drawn, *largest)
    longest = max((given + output for _, given, output in every), default=0)
    read = len(sample.drawn) + sample.unread
    whole = read == sample.rows == sample.rows_in_files
    documents = tuple(_within(one, limit, cut=cut) for one in drawn)
    counted = Counted(sample.rows, sample.size, read, whole, documents, longest, exact)
    over = sum(max(given, output) > limit for _, given, output in drawn)
    rows = planned_rows(counted, limit=2 * limit, weight=weight)
    longer = sorted(max(given, output) for _, given, output in drawn if cut or max(given, output) <= limit)
    return replace(
        rows, too_long=over * weight * (1 if whole else sample.rows / max(1, read)),
        median=min(limit, longer[len(longer) // 2]) if longer else 0,
        longest_found=max((max(given, output) for _, given, output in every), default=0),
    )  # fmt: skip


def _within(row: Lengths, limit: int, *, cut: bool) -> Drawn:
    seen, given, output = row
    size = seen.size / len(seen.examples)
    if max(given, output) > limit and not cut:
        return Drawn(0, 0, size)
    return Drawn(min(given, limit) + min(output, limit), min(output, limit), size)


def _lengths(rows: Sequence[Seen], count: CountTexts) -> list[Lengths]:
    """Rows that are no input with an output are left out; training refuses them, or leaves them out too."""
    pairs: list[tuple[Seen, str, str]] = []
    for row in rows:
        for example in row.examples:
            try:
                pairs.append((row, *input_and_output(example)))
            except DataError:
                continue
    counts = count([text for _, given, output in pairs for text in (given, output)])
    return [
        (row, *lengths) for (row, *_), lengths in zip(pairs, zip(counts[::2], counts[1::2], strict=True), strict=True)
    ]
