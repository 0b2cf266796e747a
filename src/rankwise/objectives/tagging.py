"""Tags of words: predict the tag of each word of a text, from the word's first token.

    loss = sum over words of -w(tag) log softmax(logits of the word's first token)[tag]     in nats

A decoder has seen the words before a word and not those behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.objectives import text_classification
from rankwise.objectives.text_classification import TextClassification, random_ids
from rankwise.rows.encoded.batches import IGNORED
from rankwise.rows.text.encode_tags import TagEncoder
from rankwise.rows.text.tokenize import Tokens

NAME = "token-classification"
LOADING = text_classification.LOADING.replace("ForSequenceClassification", "ForTokenClassification").replace(
    "padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id\n"
    "base.config.pad_token_id = padding  # a decoder's head reads the last token that is none of these\n", ""
).replace("The outputs are", "The outputs of a word are those of its first token,")  # fmt: skip


@dataclass(frozen=True)
class Tagging(TextClassification):
    name = NAME
    model_class = "AutoModelForTokenClassification", "a model that classifies tokens"
    encoder_class = TagEncoder
    pipeline_tag, loading_code = NAME, LOADING

    def values(self, rows: Sequence[Tokens], ids: Tensor) -> Tensor:
        """(B, T) numbers of tags, IGNORED at tokens that begin no learned word and behind the end of a row."""
        targets = np.full(ids.shape, IGNORED)
        for at, row in enumerate(rows):
            assert row.tags is not None, "every row has tags"
            targets[at, : len(row.ids)] = np.where(np.asarray(row.loss_mask, bool), np.asarray(row.tags), IGNORED)
        return torch.from_numpy(targets)

    def learned(self, values: Tensor, mask: Tensor) -> Tensor:
        """Of all tokens (B, T, ...) those that begin a learned word (N, ...)."""
        return values[mask]

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        every = random_ids(module, lengths, generator)
        return [Tokens(ids, (True,) * len(ids), tags=(0,) * len(ids)) for ids in every]
