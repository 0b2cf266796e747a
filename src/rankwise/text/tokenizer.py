"""The hub's tokenizer behind our Tokenizer protocol, with what it holds beside words: special tokens, start, end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

from rankwise.text.example import BREAK


class Encoded:
    """What the tokenizer found in a text; it knows more than is asked of it, and is asked only for that.

    The first `skipped` ids are of something before the text, which took `shift` characters.
    """

    def __init__(self, found: Any, skipped: int = 0, shift: int = 0) -> None:
        self._found, self._skipped, self._shift = found, skipped, shift
        self._ids: list[int] = found.ids[skipped:]

    @property
    def ids(self) -> list[int]:
        return self._ids

    def before(self, place: int) -> int | None:
        if not self._ids or self._chars(len(self._ids) - 1)[1] <= place:
            return len(self._ids)
        index = self._found.char_to_token(place + self._shift)
        if index is None:  # a character that no id holds
            return sum(stop - self._shift <= place for _, stop in self._found.offsets[self._skipped :])
        return index - self._skipped if self.begin(index - self._skipped) == place else None

    def begin(self, index: int) -> int:
        return self._chars(index)[0]

    def _chars(self, index: int) -> tuple[int, int]:
        start, stop = self._found.token_to_chars(index + self._skipped)
        return start - self._shift, stop - self._shift


class HubTokenizer:
    """`end_ids` are those after which, by the model's settings, an answer is complete."""

    def __init__(self, hub: Any, end_ids: Sequence[int]) -> None:
        self.hub = hub
        self.end_ids = tuple(dict.fromkeys(end_ids))

    @property
    def end_tokens(self) -> list[str]:
        """Their texts, of those that have one."""
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

    @property
    def borders(self) -> frozenset[int]:
        return self._borders

    @cached_property
    def _borders(self) -> frozenset[int]:
        return frozenset(self.hub.added_tokens_decoder)

    def encode(self, text: str) -> list[int]:
        return self.encode_all([text])[0].ids

    def encode_after(self, text: str) -> Encoded:
        """Some tokenizers put a space before every text; behind another they do not put it here.

        That other is a line break, or where this would be joined with the text, a letter or a full stop.
        """
        for before, ids in self._befores:
            (found,) = self._backend.encode_batch([before + text], add_special_tokens=False)
            if found.ids[: len(ids)] == ids and len(found.ids) > len(ids):
                return Encoded(found, len(ids), len(before))
        return self.encode_all([text])[0]

    @cached_property
    def _befores(self) -> list[tuple[str, list[int]]]:
        return [(before, self.encode(before)) for before in ("\n", "a", ".")]

    def decode_all(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return self._backend.decode_batch([list(row) for row in ids], skip_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_all([ids])[0]

    def readable(self, ids: Sequence[int]) -> str:
        """Without special tokens."""
        return self.hub.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def special(self) -> dict[int, str]:
        """Tokens that are no text, by id; a tokenizer's own list of names has only some of them."""
        return {number: str(token) for number, token in self.hub.added_tokens_decoder.items() if token.special}

    @cached_property
    def _special_begins(self) -> re.Pattern[str]:
        """Every place at which a special token begins, also inside another."""
        tokens = "|".join(re.escape(token) for token in self.special.values() if len(token) > 1)
        return re.compile(f"(?={tokens})" if tokens else r"(?!)")

    @cached_property
    def _special_parts(self) -> tuple[str, ...]:
        """What a special token may begin with: a template could write the rest right behind it."""
        parts = {token[:size] for token in self.special.values() for size in range(1, len(token))}
        return tuple(sorted(parts))

    @cached_property
    def _special_whole(self) -> re.Pattern[str]:
        longest_first = sorted(self.special.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def count_special(self, text: str) -> int:
        return len(self._special_whole.findall(text))

    def special_end(self, text: str) -> tuple[str, int] | None:
        """The special token that a text ends with, and its id."""
        found = ((token, number) for number, token in self.special.items() if token and text.endswith(token))
        return max(found, key=lambda pair: len(pair[0]), default=None)

    def holds_special(self, content: str) -> bool:
        return self._special_begins.search(content) is not None

    def guarded(self, content: str) -> str:
        """Special tokens in it broken, so that they will be read as the text they were typed as."""
        begins = [found.start() + 1 for found in self._special_begins.finditer(content)]
        pieces = [content[start:stop] for start, stop in zip([0, *begins], [*begins, len(content)], strict=True)]
        return BREAK.join(pieces) + (BREAK if content.endswith(self._special_parts) else "")

    @cached_property
    def start(self) -> str:
        """The token that this tokenizer puts before every text, if it does."""
        first = self.hub("a")["input_ids"][:1]
        return self.hub.bos_token if self.hub.bos_token_id is not None and first == [self.hub.bos_token_id] else ""

    @cached_property
    def identity(self) -> str:
        """Changes with any token and any rule."""
        return sha256(self._backend.to_str().encode()).hexdigest()
