"""What a data report records of tokens that a training adds to its model: how often the rows have them."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.config.base import Config
from rankwise.errors import some

MOST_TOKENS = 6
"""Tokens that a sentence names."""


class NewTokenFacts(Config):
    """Tokens that a training adds to its model (model.new_tokens)."""

    counts: dict[str, int]
    """How often each occurs in the training rows."""
    existing: tuple[str, ...] = ()
    """Those that the tokenizer had already, which are not added."""

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
        return f"new tokens in the training rows: {counts or 'none'}{more}"


def _never(texts: Sequence[str]) -> str:
    token, occur = ("token", "occurs") if len(texts) == 1 else ("tokens", "occur")
    return f"the new {token} {some(map(repr, texts), MOST_TOKENS)} never {occur}"


def _already(texts: Sequence[str]) -> str:
    are = "is a token" if len(texts) == 1 else "are tokens"
    return f"{some(map(repr, texts), MOST_TOKENS)} {are} of this model already (model.new_tokens)"
