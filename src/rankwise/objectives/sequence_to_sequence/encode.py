"""Encode a text and the text that is to be written for it, apart from each other, for an encoder and a decoder.

    ids        = tokens of the input, tokens of the output
    loss mask  = False for the input, True for the output

Each text gets the special tokens that its model expects: `input </s>` and `output </s>` of T5. There is no chat
template. The largest length is that of the input and of the output, each for itself. A longer row is left out, or with
`truncate` the longer of its texts is cut; a cut output has no end token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.sequences import input_and_output
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from rankwise.rows.text.tokenizer import HubTokenizer

INPUT_ALONE = "{%- for message in messages -%}{{ message.content }}{%- endfor -%}"


def bare_template(tokenizer: HubTokenizer) -> ChatTemplate:
    """The texts as they are, which is how an encoder reads them; answers end with the model's end token."""
    return ChatTemplate(tokenizer, INPUT_ALONE, "plain", ends=tokenizer.end_tokens)


@dataclass(frozen=True)
class SequenceEncoder:
    tokenizer: HubTokenizer
    spec: DataConfig
    limit: int

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, input_and_output)
        inputs = encode_inputs(self.tokenizer, [given for _, (given, _) in usable])
        outputs = encode_outputs(self.tokenizer, [text for _, (_, text) in usable])
        for (outcome, _), given, output in zip(usable, inputs, outputs, strict=True):
            self._add(outcome, given, output)
        return outcomes

    def _add(self, outcome: Outcome, given: list[int], output: list[int]) -> None:
        longest = max(len(given), len(output))
        outcome.lengths = [longest]
        if longest > self.limit:
            if self.spec.too_long != "truncate":
                outcome.too_long = 1
                return
            outcome.truncated = 1
            (given,) = encode_inputs(self.tokenizer, [input_and_output(outcome.example)[0]], self.limit)
        outcome.methods = ["apart"]
        output = output[: self.limit]
        outcome.sequences = [row_of(given, output, ended=output[-1] in self.tokenizer.end_ids)]


def row_of(given: Sequence[int], output: Sequence[int], *, ended: bool = True) -> Tokens:
    return Tokens((*given, *output), (False,) * len(given) + (True,) * len(output), ended=ended)


def parted(row: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a row's input and of its output."""
    ids, first = np.asarray(row.ids, np.int64), int(np.argmax(np.asarray(row.loss_mask)))
    return ids[:first], ids[first:]


def encode_inputs(tokenizer: HubTokenizer, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
    """What an encoder reads. With a `limit`, longer texts are cut to it, before their end token."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [ids for ids, _ in tokenizer.encode_texts([(text, "") for text in texts], limit)]

    return _with_typed_tokens_as_text(tokenizer, texts, encode, limit)


def encode_outputs(tokenizer: HubTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """What a decoder is to write."""
    return _with_typed_tokens_as_text(tokenizer, texts, tokenizer.encode_outputs)


def _with_typed_tokens_as_text(
    tokenizer: HubTokenizer, texts: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]],
    limit: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """The control tokens of some tokenizers, such as T5's, are words of their vocabulary too, so that a text in which
    somebody typed one is encoded in pieces and gets the special tokens around it that every text gets."""
    if not texts:
        return []
    encoded = encode([text.replace(BREAK, "") for text in texts])
    for at, text in enumerate(texts):
        if BREAK in (guarded := tokenizer.guarded(text.replace(BREAK, ""))):
            before, behind = _around(encode(["a"])[0], tokenizer.encode("a"))
            room = None if limit is None else limit - len(before) - len(behind)
            encoded[at] = [*before, *prompt_ids(guarded, tokenizer)[:room], *behind]
    return encoded


def _around(whole: list[int], inside: list[int]) -> tuple[list[int], list[int]]:
    """What is put before and behind the ids of a text."""
    first = next(at for at in range(len(whole)) if whole[at : at + len(inside)] == inside)
    return whole[:first], whole[first + len(inside) :]
