"""Tokens that a training adds to a tokenizer: ordinary words, each of which becomes one token wherever it is written.

    "<city>" = "<" "city" ">"      before      the pieces, of whose rows the mean is the new token's first row
    "<city>"                       after       with the next free id

A text that is one token already is not added again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Extensible(Protocol):
    """A tokenizer of transformers, as rows/text/tokenizer.py wraps it."""

    @property
    def hub(self) -> Any: ...

    def encode_after(self, text: str) -> Any: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class NewTokens:
    ids: Mapping[str, int] = field(default_factory=dict[str, int])
    """The id of each token that was added."""
    pieces: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """The tokens that it was written with before."""
    existing: Mapping[str, int] = field(default_factory=dict[str, int])
    """Those that the tokenizer had already, with their ids."""


def added(tokenizer: Extensible, texts: Sequence[str]) -> NewTokens:
    """Add tokens to the tokenizer of transformers behind `tokenizer`, which knows them only once it is made anew."""
    from tokenizers import AddedToken

    pieces = {text: tuple(tokenizer.encode_after(text).ids) for text in texts}
    existing = {text: number for text in texts if (number := _known(tokenizer, text, pieces[text])) is not None}
    others = [text for text in texts if text not in existing]
    tokenizer.hub.add_tokens([AddedToken(text, normalized=False, special=False) for text in others])
    ids = {text: int(tokenizer.hub.convert_tokens_to_ids(text)) for text in others}
    return NewTokens(ids, {text: pieces[text] for text in others}, existing)


def _known(tokenizer: Extensible, text: str, pieces: tuple[int, ...]) -> int | None:
    """The id of a text that is one token already."""
    number = tokenizer.hub.get_vocab().get(text)
    if number is not None:
        return int(number)
    return pieces[0] if len(pieces) == 1 and tokenizer.decode(pieces) == text else None
