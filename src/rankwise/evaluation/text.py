"""The reference text for measuring forgetting: blocks of tokens that base and tuned model predict.

A block has T inputs and their T next tokens: T + 1 consecutive tokens of the text, or, if the tokenizer puts a token
before every text, that one and T consecutive tokens. With blocks of S text tokens out of L, block i of N begins at
token

    floor(i (L - S) / (N - 1))

so the first block is the beginning of the text, the last is its end, and no two share a token. Nothing is random. The
default text is the documentation of the Python language that comes with every Python. It is English that is not among
the run's files; whether the base model was pretrained on it is unknown, and it differs between versions of Python.
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

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.errors import DataError, joined_problems
from rankwise.rows.files.files import SUFFIXES
from rankwise.rows.files.hub import HUB
from rankwise.rows.sources import open_source
from rankwise.rows.text.example import BREAK
from rankwise.rows.text.tokenize import prompt_ids
from rankwise.runs.data_report import DataReport
from rankwise.runs.manifest import AnchorFacts
from rankwise.system.files import sha256_of

BLOCKS, LENGTH = 32, 512
LARGEST = 4_000_000
"""Characters that are read, about a million tokens. If the text is longer, its name says so."""
BETWEEN = "\n\n"
"""Separates the texts of rows and of topics."""


@dataclass(frozen=True)
class PlainText:
    """A text with its name; `origins` are the SHA-256 of the files that it comes from."""

    name: str
    content: str
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    blocks: Tensor
    """Ids (N, T + 1): the first T are inputs, the last T targets."""
    about: str
    """A description: the name of the text, which part of it is used, and which model's tokenizer encoded it."""
    sha256: str
    """Hash of the blocks."""
    origins: tuple[str, ...]
    kinds: int = 1
    """Block i is of kind i modulo this number, which divides the number of blocks."""

    @property
    def length(self) -> int:
        """Number of positions of a block."""
        return self.blocks.shape[1] - 1


def text_for(model: LoadedModel, source: str | None = None, *, blocks: int = BLOCKS, length: int = LENGTH) -> Text:
    """Cut a text into blocks. `source` is a plain text file; or a file, folder or hub data set with rows that have a
    `text`; or None for Python's documentation. Blocks are shortened to the model's context."""
    return cut(documentation() if source is None else read_text(source), model, blocks=blocks, length=length)


def cut(plain: PlainText, model: LoadedModel, *, blocks: int, length: int, least: int | None = None) -> Text:
    """Blocks of a text that was read; fewer of them where it is too short, if these are at least `least`."""
    length = min(length, model.context_length or length)
    tokenizer = model.tokenizer
    if BREAK in plain.content:
        raise DataError(f"{plain.name}: contains the noncharacter U+FDD0, which text should not contain.")
    ids = prompt_ids(tokenizer.special.guarded(plain.content), tokenizer)
    start = tokenizer.encode(tokenizer.start) if tokenizer.start else []
    size = length + 1 - len(start)
    if least is not None:
        blocks = max(least, min(blocks, len(ids) // size))
    if blocks < 1 or len(ids) < blocks * size:
        raise DataError(
            f"{plain.name}: has {len(ids):,} tokens, and {blocks} blocks of {size} are {blocks * size:,}. "
            "Give a longer text, or ask for fewer blocks, at least 1."
        )
    parts = [[*start, *ids[first : first + size]] for first in firsts_of(len(ids), blocks, size)]
    about = f"{plain.name}: {blocks} blocks of {length}, spread over {len(ids):,} tokens of {model.source.name}"
    return Text(torch.tensor(parts), about, sha256(np.array(parts, "<i8").tobytes()).hexdigest(), plain.origins)


def firsts_of(tokens: int, blocks: int, size: int) -> list[int]:
    return [number * (tokens - size) // max(1, blocks - 1) for number in range(blocks)]


def documentation() -> PlainText:
    """Return Python's documentation as `help()` shows it, in alphabetical order of topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python comes without its documentation (pydoc_data); give a text with --text.") from None
    name = f"documentation of Python {python_version()} (pydoc_data.topics)"
    return PlainText(name, BETWEEN.join(topics[topic] for topic in sorted(topics)))


def read_text(source: str) -> PlainText:
    path = Path(os.path.expanduser(source))  # noqa: PTH111  the method of Path fails for unknown users
    if source.startswith(HUB) or path.suffix.lower() in SUFFIXES or not os.path.isfile(path):  # noqa: PTH113
        return _of_rows(source)
    try:
        with path.open("rb") as file:
            content = file.read(4 * LARGEST + 4)  # a character has at most four bytes
        text = getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) <= 4 * LARGEST)
        return _limited(str(path), text, (sha256_of(path),))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text (byte {error.start}). Give plain text, or rows that have a text."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _of_rows(source: str) -> PlainText:
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
        raise DataError(joined_problems([problem for _, problem in reading.skipped]))
    return _limited(source, BETWEEN.join(texts), tuple(part.identity() for part in reading.parts))


def _limited(name: str, text: str, origins: tuple[str, ...]) -> PlainText:
    if len(text) <= LARGEST:
        return PlainText(name, text, origins)
    return PlainText(f"the first {LARGEST:,} characters of {name}", text[:LARGEST], origins)


def refuse_trained_on(text: Text, data_report: DataReport, anchor: AnchorFacts | None = None) -> None:
    """Refuse a text that the run was trained on, or held to its base on, since it cannot show forgetting."""
    replay = data_report.replay
    shared = [file.name for file in data_report.files if file.sha256 in text.origins]
    shared += [replay.source] if replay is not None and set(replay.origins) & set(text.origins) else []
    if shared:
        raise DataError(
            f"{shared[0]} belongs to the data of the run, so it cannot show what the model has forgotten. "
            "Give text that it was not trained on."
        )
    if anchor is not None and set(anchor.origins) & set(text.origins):
        raise DataError(
            "the run was held to its base on this text (training.anchor), so it cannot show what the model has "
            "forgotten elsewhere. Give another text."
        )
