"""A tokenizer of transformers behind the Tokenizer protocol, with its special tokens, start and end tokens, and the
tokens that a training adds: ordinary words, each of which becomes one token wherever it is written.

    "<city>" = "<" "city" ">"      before      the pieces, of whose rows the mean is the new token's first row
    "<city>"                       after       with the next free id

A text that is one token already is not added again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from rankwise.rows.text.example import BREAK


@dataclass(frozen=True)
class NewTokens:
    ids: Mapping[str, int] = field(default_factory=dict[str, int])
    """The id of each token that was added."""
    pieces: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """The tokens that it was written with before."""
    existing: Mapping[str, int] = field(default_factory=dict[str, int])
    """The id of each token that the tokenizer had already."""


def added(tokenizer: HubTokenizer, texts: Sequence[str]) -> NewTokens:
    """Add tokens to the tokenizer of transformers behind `tokenizer`, which knows them only once it is made anew."""
    from tokenizers import AddedToken

    pieces = {text: tuple(tokenizer.encode_after(text).ids) for text in texts}
    existing = {text: number for text in texts if (number := _known(tokenizer, text, pieces[text])) is not None}
    others = [text for text in texts if text not in existing]
    tokenizer.hub.add_tokens([AddedToken(text, normalized=False, special=False) for text in others])
    ids = {text: int(tokenizer.hub.convert_tokens_to_ids(text)) for text in others}
    return NewTokens(ids, {text: pieces[text] for text in others}, existing)


def _known(tokenizer: HubTokenizer, text: str, pieces: tuple[int, ...]) -> int | None:
    """The id of a text that is one token already."""
    number = tokenizer.hub.get_vocab().get(text)
    if number is not None:
        return int(number)
    return pieces[0] if len(pieces) == 1 and tokenizer.decode(pieces) == text else None


class Encoded:
    """An encoded text, with the position of each token.

    The first `skipped` ids belong to `shift` characters before the text, and are left out.
    """

    def __init__(self, encoding: Any, skipped: int = 0, shift: int = 0) -> None:
        self._encoding, self._skipped, self._shift = encoding, skipped, shift
        self._ids: list[int] = encoding.ids[skipped:]

    @property
    def ids(self) -> list[int]:
        return self._ids

    def before(self, position: int) -> int | None:
        """Number of ids before `position` in the text; None if an id crosses the position."""
        if not self._ids or self._chars(len(self._ids) - 1)[1] <= position:
            return len(self._ids)
        index = self._encoding.char_to_token(position + self._shift)
        if index is None:  # a character without a token
            return sum(stop - self._shift <= position for _, stop in self._encoding.offsets[self._skipped :])
        return index - self._skipped if self.begin(index - self._skipped) == position else None

    def begin(self, index: int) -> int:
        """Position of the first character of an id."""
        return self._chars(index)[0]

    def _chars(self, index: int) -> tuple[int, int]:
        start, stop = self._encoding.token_to_chars(index + self._skipped)
        return start - self._shift, stop - self._shift


class SpecialTokens:
    """All special tokens, `texts` by id. The tokenizer's own list of named tokens has only some of them."""

    def __init__(self, added_tokens: Mapping[int, str], special: Collection[int]) -> None:
        self.texts = {number: token for number, token in added_tokens.items() if number in special}
        self.unspelled = {
            token: number for number, token in added_tokens.items()
            if number in special or (token.startswith("<") and token.endswith(">"))
        }  # fmt: skip
        """The ids of tokens that llguidance does not take for their text in a grammar: special tokens, and added ones
        in angle brackets."""

    @cached_property
    def begins(self) -> re.Pattern[str]:
        """Matches every position at which a special token begins, also inside another one."""
        tokens = "|".join(re.escape(token) for token in self.texts.values() if len(token) > 1)
        return re.compile(f"(?={tokens})" if tokens else r"(?!)")

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """Beginnings of special tokens. A template could write the rest of the token directly after the text."""
        parts = {token[:size] for token in self.texts.values() for size in range(1, len(token))}
        return tuple(sorted(parts))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return _any_of(self.texts.values())

    @cached_property
    def unspelled_pattern(self) -> re.Pattern[str]:
        return _any_of(self.unspelled)

    def end_of(self, text: str) -> tuple[str, int] | None:
        """The special token that a text ends with, and its id."""
        ends = ((token, number) for number, token in self.texts.items() if token and text.endswith(token))
        return max(ends, key=lambda pair: len(pair[0]), default=None)

    def guarded(self, content: str) -> str:
        """Break up the special tokens in a text, so that they are encoded as plain text."""
        begins = [match.start() + 1 for match in self.begins.finditer(content)]
        pieces = [content[start:stop] for start, stop in zip([0, *begins], [*begins, len(content)], strict=True)]
        return BREAK.join(pieces) + (BREAK if content.endswith(self._parts) else "")


class HubTokenizer:
    """A tokenizer of transformers. `end_ids` are the tokens that end an answer by the model's config, and `new` are
    tokens that were added to it."""

    def __init__(self, hub: Any, end_ids: Sequence[int], new: NewTokens | None = None) -> None:
        self.hub = hub
        self.end_ids = tuple(dict.fromkeys(end_ids))
        self.new = new or NewTokens()

    def with_tokens(self, texts: Sequence[str]) -> HubTokenizer:
        """This tokenizer with further tokens, each of which is one token wherever a text has it."""
        return HubTokenizer(self.hub, self.end_ids, added(self, texts)) if texts else self

    @property
    def end_tokens(self) -> list[str]:
        """The texts of the end tokens that have one."""
        texts = [self.decode([token]) for token in self.end_ids]
        return [text for text in texts if text and "\ufffd" not in text]

    @cached_property
    def pad_id(self) -> int:
        return next((token for token in (self.hub.pad_token_id, *self.end_ids) if token is not None), 0)

    @cached_property
    def _backend(self) -> Any:
        backend = self.hub.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return backend

    def encode_all(self, texts: Sequence[str]) -> list[Encoded]:
        return [Encoded(one) for one in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    @cached_property
    def borders(self) -> frozenset[int]:
        """Ids of tokens that divide a text: the text after such a token is encoded as if it stood alone."""
        return frozenset(self.hub.added_tokens_decoder)

    def encode_texts(
        self, texts: Sequence[tuple[str, ...]], limit: int | None = None
    ) -> list[tuple[list[int], list[int] | None]]:
        """Ids and token types of texts, or of pairs of texts, with the special tokens that the model expects around
        them. With a `limit`, the longer text of a pair is cut until both fit. Special tokens inside a text are read as
        plain text. Token types are None where the model takes none.
        """
        return [(one.ids, one.type_ids if self.reads_types else None) for one in self.encodings(texts, limit)]

    @property
    def reads_types(self) -> bool:
        """Whether the model takes token types."""
        return "token_type_ids" in self.hub.model_input_names

    def encodings(self, texts: Sequence[tuple[str, ...]], limit: int | None = None) -> list[Any]:
        """Encode as `encode_texts` does, but return the tokenizers library's encodings, which also tell where each
        token lies in its text."""
        joins = self.hub.sep_token_id is None
        inputs = ["\n\n".join(filter(None, pair)) if joins or not pair[1] else pair for pair in texts]
        backend = self._backend
        backend.encode_special_tokens = True
        if limit is not None:
            backend.enable_truncation(limit, strategy="longest_first")
        try:
            return backend.encode_batch(inputs, add_special_tokens=True)
        finally:
            backend.encode_special_tokens = False
            backend.no_truncation()

    def encode_outputs(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the texts that a decoder is to write, with the special tokens that its model expects around them; a
        tokenizer of several languages encodes them as the target language. Special tokens inside a text are read as
        plain text."""
        return self.hub(text_target=list(texts), split_special_tokens=True, verbose=False)["input_ids"]

    def encode(self, text: str) -> list[int]:
        return self.encode_all([text])[0].ids

    def encode_after(self, text: str) -> Encoded:
        """Encode a text as the continuation of another.

        Some tokenizers put a space before every text. To avoid it, the text is encoded after a line break, or if that
        would merge with the text, after a letter or a full stop, and their ids are removed.
        """
        for before, ids in self._befores:
            (encoding,) = self._backend.encode_batch([before + text], add_special_tokens=False)
            if encoding.ids[: len(ids)] == ids and len(encoding.ids) > len(ids):
                return Encoded(encoding, len(ids), len(before))
        return self.encode_all([text])[0]

    @cached_property
    def _befores(self) -> list[tuple[str, list[int]]]:
        return [(before, self.encode(before)) for before in ("\n", "a", ".")]

    def decode_all(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return self._backend.decode_batch([list(row) for row in ids], skip_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_all([ids])[0]

    def readable(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.hub.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def special(self) -> SpecialTokens:
        decoder = self.hub.added_tokens_decoder
        texts = {number: str(token) for number, token in decoder.items()}
        return SpecialTokens(texts, {number for number, token in decoder.items() if token.special})

    @cached_property
    def start(self) -> str:
        """The token that this tokenizer puts before every text; empty if it puts none."""
        first = self.hub("a")["input_ids"][:1]
        return self.hub.bos_token if self.hub.bos_token_id is not None and first == [self.hub.bos_token_id] else ""

    @cached_property
    def identity(self) -> str:
        """A hash of all tokens and rules of the tokenizer."""
        return sha256(self._backend.to_str().encode()).hexdigest()


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
