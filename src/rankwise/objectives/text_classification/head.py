"""The head of a classifier of texts, and what other software is given of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.pooling import as_block
from rankwise.objectives.classifier import AsWritten, ClassHead, Graph, RowInputs
from rankwise.objectives.text_classification.loss import logits_of, padded
from rankwise.objectives.text_classification.rows import encode_texts
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.targets import texts_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

TEXTS = (
    "This is good.", "This is bad.", "The delivery came late, and the box was open.", "How much does it cost?",
    "I like it very much!", "No.", "The match ended two to one.", "Please send me the invoice again.",
)  # fmt: skip


@dataclass(frozen=True)
class TextHead(ClassHead):
    inputs: RowInputs
    questions: ClassVar[Sequence[str]] = TEXTS
    """What other software is asked where there are no rows."""

    def as_read_elsewhere(self, module: nn.Module, dtype: torch.dtype) -> TargetFacts:
        """A head that reads a pooled vector gets a block that computes it, and the model's own code reads that."""
        if self.targets.pooling == "own":
            return self.targets
        as_block(module, self.targets.pooling, dtype)
        return self.targets.model_copy(update={"pooling": "own"})

    def examples(self, model: LoadedModel, rows: Sequence[Tokens], count: int, as_written: AsWritten) -> list[Example]:
        tokenizer, chosen = model.tokenizer, evenly(rows, count)
        found = {} if tokenizer.hub.sep_token_id is None else as_written(chosen)  # else we join the texts of a pair
        texts = [(row.name or "a text", tokenizer.readable([int(token) for token in row.ids])) for row in chosen]
        texts = texts or [("a text", text) for text in self.questions]
        return [found.get(name) or self.inputs.example_of(text, name) for name, text in texts]

    def question(self, outcome: Outcome) -> dict[str, Any]:
        (text, pair), ids = texts_of(outcome.example), outcome.sequences[0].ids
        return {"row": outcome.example.where, "text": text, "pair": pair or None, "ids": [*map(int, ids)]}

    def graph(self, model: LoadedModel, limit: int) -> Graph:
        rows = encode_texts(model.tokenizer, [(text, "") for text in TEXTS[:2]])
        inputs, ends = padded(rows), {row.ids[-1] for row in rows} & model.tokenizer.special.texts.keys()

        def logits(ids: Tensor, mask: Tensor, *types: Tensor) -> Tensor:
            if ends:  # transformers.js cuts it off a text that is too long
                ids = ids.masked_fill((torch.arange(ids.shape[1]) == limit - 1) & mask.bool(), min(ends))
            return logits_of(model.module, dict(zip(inputs, (ids, mask, *types), strict=True)))

        return Graph(model.module, logits, inputs, {0: "batch", 1: "sequence"}, "bert")
