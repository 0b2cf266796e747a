"""What a classifier says of texts: the probability of each class, or a number.

What a token classifier says of texts: the probability of each tag for each word, and the spans of its likeliest
tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.objectives.objective import Classifier
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.encode_tags import EncodedWords, Text
from rankwise.rows.text.tagged import BEGIN, INSIDE, OUTSIDE, label_in, spans_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

TOKENS_AT_ONCE = 4096
Numbers = NDArray[np.float64]
Done = Callable[[int], None]
Outputs = Callable[[Classifier, nn.Module, Sequence[Tokens], Done | None], Any]
"""What a classifier says of rows, in their order: `outputs_of`, or the same by several processes."""
THRESHOLD = 0.5
"""Where a row may have several classes, the probability above which a class is predicted."""


def probability_column(name: str) -> str:
    """The column of a class's probability."""
    return f"probability_{name}"


@dataclass(frozen=True)
class Prediction:
    """`label` is the likeliest class; without classes, `value` is the predicted number."""

    label: str | None
    value: float | None
    probabilities: dict[str, float]
    """Of every class, which sum to 1 unless a row may have several."""
    labels: list[str] | None = None
    """Where a row may have several classes: those with a probability above THRESHOLD."""

    def as_columns(self, column: str) -> dict[str, Any]:
        """The prediction, and the probability of each class beside it."""
        shares = {probability_column(name): round(share, 6) for name, share in self.probabilities.items()}
        labels = self.label if self.labels is None else self.labels
        return {column: labels if labels is not None else self.value, **shares}


def predictions(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None
) -> list[Prediction]:
    """One for each row, in their order."""
    return [_prediction(objective.targets, one) for one in outputs_of(objective, module, rows, done)]


@torch.no_grad()
def outputs_of(objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None) -> Numbers:
    """Probabilities (N, C) of the classes, or numbers (N, 1)."""
    found = np.zeros((len(rows), objective.targets.outputs))
    for places, _, outputs in _in_batches(objective, module, rows, done):
        found[places] = _probabilities(objective, outputs)
    return found


def _in_batches(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Places of rows with their batch and the model's outputs, the longest rows first."""
    device, finished = next(module.parameters()).device, 0
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids), reverse=True)
    for batch in objective.batches([rows[at] for at in order], TOKENS_AT_ONCE):
        count = len(batch.targets)
        yield order[finished : finished + count], batch, objective.predict(module, batch.to(device)).double()
        finished += count
        if done is not None:
            done(finished)


def _probabilities(objective: Classifier, outputs: Tensor) -> Numbers:
    if objective.targets.form == "several":
        return outputs.sigmoid().cpu().numpy()
    values = outputs.softmax(-1) if objective.targets.classes else outputs[:, None]
    return values.cpu().numpy()


def _prediction(targets: TargetFacts, outputs: Numbers) -> Prediction:
    if not targets.classes:
        return Prediction(None, float(outputs[0]), {})
    shares = dict(zip(targets.classes, outputs.tolist(), strict=True))
    if targets.form == "several":
        return Prediction(None, None, shares, [name for name, share in shares.items() if share > THRESHOLD])
    return Prediction(targets.classes[int(outputs.argmax())], None, shares)


@dataclass(frozen=True)
class TaggedText:
    spans: list[dict[str, Any]]
    """With start, end, label, text and probability, which is the mean over the span's words of the probability of the
    predicted tag."""
    tags: list[str]
    """One for each word."""
    given: bool
    """Whether the words were given one by one."""

    def as_columns(self, column: str) -> dict[str, Any]:
        """The spans, and beside them the tags of words that were given."""
        return {column: self.spans, tags_column(column): self.tags} if self.given else {column: self.spans}


def tags_column(column: str) -> str:
    """The column of tags beside a column of spans."""
    return f"{column}_tags"


@torch.no_grad()
def tag_probabilities(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None
) -> list[Numbers]:
    """For each row (W, C): the probability of each of C tags for each of its W learned words."""
    found = [np.empty((0, 0))] * len(rows)
    for places, batch, outputs in _in_batches(objective, module, rows, done):
        shares, words = outputs.softmax(-1).cpu().numpy(), batch.loss_mask.sum(1).tolist()
        for place, part in zip(places, np.split(shares, np.cumsum(words)[:-1]), strict=True):
            found[place] = part
    return found


def tagged_text(targets: TargetFacts, text: Text, encoded: EncodedWords, shares: Numbers, *, given: bool) -> TaggedText:
    """`shares` (W, C) are the probabilities of the learned words. A word that is not learned has the tag of the word
    before it, whose first token it shares; and a word that was cut has none."""
    whole, words = text
    tags, sure = [""] * len(words), np.full(len(words), np.nan)
    for number, row in zip(encoded.words, shares, strict=True):
        tags[number], sure[number] = targets.classes[int(row.argmax())], row.max()
    for number in range(len(words)):
        cut = number >= len(words) - encoded.cut
        tags[number] = tags[number] or (OUTSIDE if cut or not number else _continued(tags[number - 1]))
    spans = [
        {
            "start": words[span.first][0], "end": words[span.stop - 1][1], "label": span.label,
            "text": whole[words[span.first][0] : words[span.stop - 1][1]],
            "probability": round(float(np.nanmean(sure[span.first : span.stop])), 6),
        }
        for span in spans_of(tags)
    ]  # fmt: skip
    return TaggedText(spans, tags, given)


def _continued(tag: str) -> str:
    label = label_in(tag)
    return f"{INSIDE}{label}" if tag.startswith((BEGIN, INSIDE)) else tag
