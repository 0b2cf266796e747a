"""Tokenize renderings: ids and loss mask are made together. rows/encoded/batches.py comes next.

The text is encoded as a whole, as at inference, and each token belongs to the segment that contains it. The tokens
before an answer must equal those of the prompt alone, because the model is prompted with them. If a token would cross
the border of a segment, or the tokens before an answer differ, the segments are encoded one by one, which is what the
model sees when it continues a prompt. In both cases, the loss tokens must decode to the text of the answer, or the row
is refused. The prompt may lose white space, as some tokenizers do that.

Control tokens that somebody typed contain a BREAK (example.py). A text is encoded in the pieces between the BREAKs, so
no piece contains a whole control token, and the ids are those of plain text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal
from unicodedata import normalize

import numpy as np

from rankwise.errors import TemplateError
from rankwise.rows.text.example import BREAK
from rankwise.rows.text.tokenizer import Encoded, HubTokenizer

Method = Literal["marks", "prefix", "text", "apart"]


@dataclass(frozen=True)
class Segment:
    """A part of the rendered text that is in the loss (`learned`) or not."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Rendering:
    """One sequence to train on. `as_asked` says whether the text before each answer equals the prompt at inference."""

    segments: tuple[Segment, ...]
    method: Method
    as_asked: bool = True

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Tokens:
    """`as_asked`: the ids before each answer are those that generation will be given. `ended`: no answer is cut."""

    ids: Sequence[int] | np.ndarray
    loss_mask: Sequence[bool] | np.ndarray
    """Same length as ids."""
    as_asked: bool = True
    ended: bool = True
    method: str = field(default="", compare=False)
    """How the answers were located: marks, prefix, text, or apart from the conversation's other answers."""
    token_type_ids: Sequence[int] | np.ndarray | None = None
    """For an encoder's pair of texts or a pair of answers: 0 for each token of the first, 1 for each of the second."""
    target: float | Sequence[float] | None = None
    """The class or value of the whole row, where no token of it is predicted; or 1 for each class that it has."""
    image: np.ndarray | None = None
    """The pixels (H, W, 3) of an image's row, in uint8. Its ids are zeros, one for each patch."""
    name: str | None = None
    """Where a labelled row came from: file:line, or an image's file."""
    reference: np.ndarray | None = None
    """For a preference pair: the log-probabilities (2,) of both answers before training."""
    tags: Sequence[int] | np.ndarray | None = None
    """Where words have tags: the class of each token that the loss mask has."""

    @property
    def loss_count(self) -> int:
        """How many predictions of this row have a loss."""
        if self.target is not None:
            return 1
        return int(np.count_nonzero(self.loss_mask[self.tags is None :]))  # nothing predicts the first, a tag apart


def sides_of(row: Tokens) -> tuple[Tokens, ...]:
    """The conversations of a row that has several, such as the chosen and the rejected one of a pair."""
    assert row.token_type_ids is not None, "the row has several conversations"
    borders = [0, *(np.flatnonzero(np.diff(np.asarray(row.token_type_ids))) + 1).tolist(), len(row.ids)]
    return tuple(
        Tokens(row.ids[begin:end], row.loss_mask[begin:end], row.as_asked, row.ended, name=row.name)
        for begin, end in pairwise(borders)
    )


def tokenise(rendering: Rendering, tokenizer: HubTokenizer, where: str = "") -> Tokens:
    (tokens,) = tokenise_all([rendering], tokenizer)
    if tokens is None:
        raise TemplateError(undecodable(rendering, where))
    return tokens


def undecodable(rendering: Rendering, where: str) -> str:
    return (
        f"{where}: this tokenizer's ids do not decode to the encoded text, so the loss mask cannot be "
        f"checked (text {rendering.text[:60]!r})."
    )


def prompt_ids(text: str, tokenizer: HubTokenizer) -> list[int]:
    """The ids of a prompt."""
    return _encode(text, tokenizer).ids


def tokenise_all(renderings: Sequence[Rendering], tokenizer: HubTokenizer) -> list[Tokens | None]:
    """Tokenize renderings together; None for one whose loss tokens do not decode to the text of the answers."""
    texts = [rendering.text for rendering in renderings]
    plain = [text for text in texts if BREAK not in text]
    encoded = iter(tokenizer.encode_all(plain) if plain else ())
    wholes = [_encode(text, tokenizer) if BREAK in text else next(encoded) for text in texts]
    asks = _Asks(tokenizer)
    splits = [
        _split(rendering.segments, text, whole, asks)
        for rendering, text, whole in zip(renderings, texts, wholes, strict=True)
    ]
    found = _checked(renderings, splits, tokenizer)
    for index, tokens in enumerate(found):
        if tokens is None:
            (found[index],) = _checked([renderings[index]], [_encode_apart(renderings[index], tokenizer)], tokenizer)
            found[index] = _asked_alone(renderings[index], found[index], tokenizer)
    return found


@dataclass
class _Asks:
    """Checks whether the tokens of a prompt inside a text equal those of the prompt alone.

    The text after a border is encoded as if it stood alone, so only the part after the last border is encoded again.
    These parts are mostly the same few words, and their ids are remembered.
    """

    tokenizer: HubTokenizer
    known: dict[str, list[int]] = field(default_factory=dict)

    def same(self, prompt: str, encoded: Encoded | _Pieces, count: int) -> bool:
        borders = self.tokenizer.borders
        ids = encoded.ids
        last = next((position for position in range(count - 1, -1, -1) if ids[position] in borders), None)
        if last is None:
            return self._encoded(prompt) == ids[:count]
        return self._encoded(prompt[encoded.begin(last) :]) == ids[last:count]

    def _encoded(self, text: str) -> list[int]:
        if text not in self.known:
            ids = prompt_ids(text, self.tokenizer)
            if len(text) > 100:
                return ids
            self.known[text] = ids
        return self.known[text]


def _encode(text: str, tokenizer: HubTokenizer) -> Encoded | _Pieces:
    if BREAK not in text:
        return tokenizer.encode_all([text])[0]
    first, *others = text.split(BREAK)
    return _Pieces([first, *others], [tokenizer.encode_all([first])[0], *map(tokenizer.encode_after, others)])


class _Pieces:
    """A text that was encoded in the pieces between its BREAKs."""

    def __init__(self, texts: Sequence[str], encoded: Sequence[Encoded]) -> None:
        self._encoded = encoded
        self._starts = list(accumulate((len(text) + len(BREAK) for text in texts), initial=0))
        self._counts = list(accumulate((len(piece.ids) for piece in encoded), initial=0))
        self._ids = [token for piece in encoded for token in piece.ids]

    @property
    def ids(self) -> list[int]:
        return self._ids

    def before(self, position: int) -> int | None:
        piece = min(bisect_right(self._starts, position), len(self._encoded)) - 1
        inside = self._encoded[piece].before(position - self._starts[piece])
        return None if inside is None else self._counts[piece] + inside

    def begin(self, index: int) -> int:
        piece = bisect_right(self._counts, index) - 1
        return self._starts[piece] + self._encoded[piece].begin(index - self._counts[piece])


def _split(segments: Sequence[Segment], text: str, encoded: Encoded | _Pieces, asks: _Asks) -> list[list[int]] | None:
    """The ids of each segment; None if an id crosses a border, or if a prompt alone has other ids."""
    parts: list[list[int]] = []
    start = position = 0
    for segment in segments:
        if segment.learned and position and not asks.same(text[:position], encoded, start):
            return None
        position += len(segment.text)
        end = encoded.before(position)
        if end is None and segment.learned:
            end = _behind_space(text, position, encoded, asks.tokenizer.borders)
        ids, last = encoded.ids[start:end], asks.tokenizer.special.end_of(segment.text) if segment.learned else None
        # some tokenizers encode the letters of an end token after a word
        if end is None or (last is not None and ids[-1:] != [last[1]]):
            return None
        parts.append(ids)
        start = end
    return parts


def _behind_space(text: str, position: int, encoded: Encoded | _Pieces, borders: Collection[int]) -> int | None:
    """Number of ids up to an end token that also contains the white space after it."""
    while position < len(text) and text[position].isspace():
        position += 1
        end = encoded.before(position)
        if end:
            return end if encoded.ids[end - 1] in borders else None
    return None


def _encode_apart(rendering: Rendering, tokenizer: HubTokenizer) -> list[list[int]]:
    first, *others = rendering.segments
    return [prompt_ids(first.text, tokenizer), *(_continued(segment, tokenizer) for segment in others)]


def _continued(segment: Segment, tokenizer: HubTokenizer) -> list[int]:
    end = tokenizer.special.end_of(segment.text) if segment.learned else None
    text = segment.text.removesuffix(end[0]) if end else segment.text
    ids = [token for piece in text.split(BREAK) if piece for token in tokenizer.encode_after(piece).ids]
    return [*ids, end[1]] if end else ids


def _asked_alone(rendering: Rendering, tokens: Tokens | None, tokenizer: HubTokenizer) -> Tokens | None:
    """For separately encoded segments, check whether the ids before each answer equal those of its prompt."""
    if tokens is None:
        return None
    learned = list(tokens.loss_mask)
    begins = [position for position in range(1, len(learned)) if learned[position] and not learned[position - 1]]
    texts = [segment.text for segment in rendering.segments]
    prompts = ["".join(texts[:index]) for index, segment in enumerate(rendering.segments) if segment.learned and index]
    same = len(begins) == len(prompts) and all(
        list(tokens.ids[:begin]) == prompt_ids(prompt, tokenizer) for begin, prompt in zip(begins, prompts, strict=True)
    )
    return replace(tokens, as_asked=tokens.as_asked and same)


def _checked(
    renderings: Sequence[Rendering], splits: Sequence[list[list[int]] | None], tokenizer: HubTokenizer
) -> list[Tokens | None]:
    """The tokens of renderings whose segments decode to their text, alone or after the segments before; else None."""
    parts = [part for split in splits if split is not None for part in split]
    decoded = iter(tokenizer.decode_all(parts) if parts else ())
    found: list[Tokens | None] = []
    for rendering, split in zip(renderings, splits, strict=True):
        if split is None:
            found.append(None)
            continue
        alone = [next(decoded) for _ in split]
        agrees = all(_same(is_, segment) for is_, segment in zip(alone, rendering.segments, strict=True))
        found.append(_joined(rendering, split) if agrees or _agrees(rendering, split, tokenizer) else None)
    return found


def _same(decoded: str, segment: Segment) -> bool:
    return decoded == segment.text or _composed(decoded) == _composed(segment.text.replace(BREAK, ""))


def _agrees(rendering: Rendering, split: Sequence[Sequence[int]], tokenizer: HubTokenizer) -> bool:
    """Whether the segments decode to their text after the segments before. SentencePiece needs this for spaces."""
    ids = [[token for part in split[: length + 1] for token in part] for length in range(len(split))]
    decoded = tokenizer.decode_all(ids)
    wanted = list(accumulate(segment.text.replace(BREAK, "") for segment in rendering.segments))
    if all(_composed(is_) == _composed(should) for is_, should in zip(decoded, wanted, strict=True)):
        return True
    before = ""
    for segment, text in zip(rendering.segments, decoded, strict=True):
        if not text.startswith(before):
            return False
        piece, should, before = text[len(before) :], segment.text.replace(BREAK, ""), text
        if segment.learned and _composed(should) not in (_composed(form) for form in (piece, f" {piece}", piece[1:])):
            return False
        if _composed("".join(piece.split())) != _composed("".join(should.split())):
            return False
    return True


def _joined(rendering: Rendering, split: Sequence[Sequence[int]]) -> Tokens:
    ids: list[int] = []
    learned: list[bool] = []
    for part, segment in zip(split, rendering.segments, strict=True):
        ids += part
        learned += [segment.learned] * len(part)
    return Tokens(tuple(ids), tuple(learned), rendering.as_asked, method=rendering.method)


def _composed(text: str) -> str:
    return text if text.isascii() else normalize("NFC", text)  # many tokenizers compose accents
