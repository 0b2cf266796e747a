"""Stop 3: Segments in, Tokens out: ids and mask are made together. Next: batches.py.

The text is encoded whole, as it will be when the model is served, and each token belongs to the segment it lies
in. Where a token would straddle the border between given and learned text, the segments are encoded one by one:
that is what the model will see when it continues a prompt. Either way the ids must decode to the segments, or the
row is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol
from unicodedata import normalize

from rankwise.data.templates import Segment
from rankwise.errors import TemplateError


@dataclass(frozen=True)
class Tokens:
    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    """Same length as ids."""

    @property
    def supervised(self) -> int:
        return sum(self.learned[1:])  # the first token has nothing to be predicted from


class Tokenizer(Protocol):
    """`encode` adds nothing of its own; `offsets` are the characters each id came from."""

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def tokenise(segments: Sequence[Segment], tokenizer: Tokenizer, where: str = "") -> Tokens:
    tokens = _encode_whole(segments, tokenizer) or _encode_apart(segments, tokenizer)
    if tokens is None:
        raise TemplateError(
            f"{where}: this tokenizer's ids do not decode to the text they came from, so the learned part cannot be "
            f"checked (text {''.join(segment.text for segment in segments)[:60]!r})."
        )
    return tokens


def _encode_whole(segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokens | None:
    ids, offsets = tokenizer.encode("".join(segment.text for segment in segments))
    parts: list[list[int]] = []
    start = 0
    for border in accumulate(len(segment.text) for segment in segments):
        end = start
        while end < len(ids) and offsets[end][1] <= border:
            end += 1
        parts.append(ids[start:end])
        start = end
    return _joined(segments, parts, tokenizer) if start == len(ids) else None


def _encode_apart(segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokens | None:
    return _joined(segments, [tokenizer.encode(segment.text)[0] for segment in segments], tokenizer)


def _joined(segments: Sequence[Segment], parts: list[list[int]], tokenizer: Tokenizer) -> Tokens | None:
    """None if the ids up to some border do not decode to the text up to it."""
    ids: list[int] = []
    text = ""
    for part, segment in zip(parts, segments, strict=True):
        ids, text = ids + part, text + segment.text
        if normalize("NFC", tokenizer.decode(ids)) != normalize("NFC", text):  # many tokenizers compose accents
            return None
    pairs = [(token, segment.learned) for part, segment in zip(parts, segments, strict=True) for token in part]
    return Tokens(tuple(token for token, _ in pairs), tuple(learned for _, learned in pairs))
