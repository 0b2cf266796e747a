"""Text that stays the same: blocks of tokens that a tuned model is asked to predict, with what they were cut from.

A block is T inputs and their T next tokens: T + 1 tokens in a row of the text, or, where the tokenizer puts a token
before every text, that one and T more. With S tokens from the first of one block to its last, of L in all, block i of N
begins at token

    floor(i (L - S) / (N - 1))

so the first is the text's beginning, the last its end, and none shares a token with another. Nothing is drawn and
nothing is left out. Without a text of the user's it is the documentation of the Python language that every Python
carries: English that is not among the run's files, though nobody knows what else its model has read, and other
versions of Python have another.
"""

from __future__ import annotations

import os
from codecs import getincrementaldecoder
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from platform import python_version

import numpy as np
import torch
from torch import Tensor

from rankwise.config.data import DataConfig
from rankwise.data.files import SUFFIXES
from rankwise.data.hub import HUB
from rankwise.data.sources import open_source
from rankwise.errors import DataError, together
from rankwise.models.loaded import LoadedModel
from rankwise.runs.data_report import DataReport
from rankwise.system.files import sha256_of
from rankwise.text.example import BREAK
from rankwise.text.tokenize import prompt_ids

BLOCKS, LENGTH = 32, 512
LARGEST = 4_000_000
"""Characters; about a million tokens. What follows is not read, and the text's name says so."""
BETWEEN = "\n\n"
"""Between the texts of rows, and of topics."""


@dataclass(frozen=True)
class Written:
    """`origins` are the SHA-256 of the files it comes from."""

    name: str
    content: str
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    blocks: Tensor
    """(N, T + 1) ids: the first T are given, the last T predicted."""
    about: str
    """Its name, what of it is read, and in whose tokens."""
    sha256: str
    """Of the blocks."""
    origins: tuple[str, ...]

    @property
    def length(self) -> int:
        """Positions of a block."""
        return self.blocks.shape[1] - 1


def text_for(model: LoadedModel, source: str | None = None, *, blocks: int = BLOCKS, length: int = LENGTH) -> Text:
    """`source` is a file of plain text, a file, folder or hub data set of rows with a `text`, or None for what Python
    carries. Blocks are as long as the model's context, where that is shorter."""
    written = documentation() if source is None else read_text(source)
    length = min(length, model.context_length or length)
    tokenizer = model.tokenizer
    if BREAK in written.content:
        raise DataError(f"{written.name}: has the noncharacter U+FDD0, which no text should have.")
    ids = prompt_ids(tokenizer.guarded(written.content), tokenizer)
    start = tokenizer.encode(tokenizer.start) if tokenizer.start else []
    size = length + 1 - len(start)
    if blocks < 1 or len(ids) < blocks * size:
        raise DataError(
            f"{written.name}: has {len(ids):,} tokens, and {blocks} blocks of {size} are {blocks * size:,}. "
            "Give a longer text, or ask for fewer blocks, at least 1."
        )
    cut = [[*start, *ids[first : first + size]] for first in firsts_of(len(ids), blocks, size)]
    about = f"{written.name}: {blocks} blocks of {length}, spread over {len(ids):,} tokens of {model.source.name}"
    return Text(torch.tensor(cut), about, sha256(np.array(cut, "<i8").tobytes()).hexdigest(), written.origins)


def firsts_of(tokens: int, blocks: int, size: int) -> list[int]:
    return [number * (tokens - size) // max(1, blocks - 1) for number in range(blocks)]


def documentation() -> Written:
    """As `help()` shows it, in the order of its topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python carries no documentation of its own (pydoc_data); give a text.") from None
    name = f"documentation of Python {python_version()} (pydoc_data.topics)"
    return Written(name, BETWEEN.join(topics[topic] for topic in sorted(topics)))


def read_text(source: str) -> Written:
    path = Path(os.path.expanduser(source))  # noqa: PTH111  Path's raises for a user that is not there
    if source.startswith(HUB) or path.suffix.lower() in SUFFIXES or not os.path.isfile(path):  # noqa: PTH113
        return _of_rows(source)
    try:
        with path.open("rb") as file:
            content = file.read(4 * LARGEST + 4)  # a character has four bytes at most
        text = getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) <= 4 * LARGEST)
        return _limited(str(path), text, (sha256_of(path),))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text (byte {error.start}). Give plain text, or rows that have a text."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _of_rows(source: str) -> Written:
    spec = DataConfig(path=source, format="text")
    reading = open_source(spec, spec.all_sources[0])
    texts: list[str] = []
    size = 0
    for text in (example.prompt_text for chunk in reading.chunks() for row in chunk for example in row):
        texts.append(text)
        size += len(text) + len(BETWEEN)
        if size > LARGEST:
            break
    if reading.skipped:
        raise DataError(together([problem for _, problem in reading.skipped]))
    return _limited(source, BETWEEN.join(texts), tuple(part.identity() for part in reading.parts))


def _limited(name: str, text: str, origins: tuple[str, ...]) -> Written:
    if len(text) <= LARGEST:
        return Written(name, text, origins)
    return Written(f"the first {LARGEST:,} characters of {name}", text[:LARGEST], origins)


def refuse_trained_on(text: Text, data_report: DataReport) -> None:
    """What a run has learned says nothing of what it forgot."""
    shared = [file.name for file in data_report.files if file.sha256 in text.origins]
    if shared:
        raise DataError(
            f"{shared[0]} is among the data of the run, so that it cannot tell what the model has forgotten. "
            "Give text that it was not trained on."
        )
