"""How likely a model finds documents: the sum of -log p, in nats, over the tokens of each that are scored.

Documents are computed together by length, in an order of their own: what a document gets depends on neither the order
nor the number of the others that are asked for, but for rounding in the last places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from rankwise.data.batches import collate, input_length
from rankwise.errors import EvaluationError
from rankwise.forward.reference import SupervisedLogits
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.text.tokenize import Tokens

LOGITS = 100_000_000
"""Numbers that are held at a time."""
AT_ONCE = 512


@dataclass(frozen=True)
class Likelihood:
    nats: float
    tokens: int

    @property
    def sums(self) -> list[float]:
        """Its row for `loss` (metrics.py): [nats, tokens]."""
        return [self.nats, float(self.tokens)]


@torch.inference_mode()
def likelihoods(
    module: nn.Module, documents: Sequence[Tokens], callback: Callback = silent, what: str = "",
    places: Sequence[str] = (),
) -> list[Likelihood]:  # fmt: skip
    """One for each document, in their order. Equal documents are computed once. `places` say where they stand, for
    messages."""
    keys = [_key(document) for document in documents]
    distinct = dict(zip(keys, documents, strict=True))
    model: Any = module
    device, vocabulary = next(module.parameters()).device, model.get_input_embeddings().weight.shape[0]
    forward, found = SupervisedLogits(module), {}
    total, done = sum(input_length(one) for one in distinct.values()), 0
    for batch in _batches([distinct[key] for key in sorted(distinct)], max(256, LOGITS // vocabulary)):
        there = collate(batch).to(device)
        targets, logits = there.targets[there.loss_mask], forward(there)
        pieces = [
            F.cross_entropy(part.float(), wanted, reduction="none")
            for part, wanted in zip(logits.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
        ]
        nats = torch.cat(pieces).double().cpu()
        for document, own in zip(batch, nats.split([one.loss_count for one in batch]), strict=True):
            found[_key(document)] = Likelihood(own.sum().item(), document.loss_count)
        done += sum(input_length(document) for document in batch)
        callback(ProgressUpdate(what, done, total, "tokens"))
    _refuse_damage(keys, found, places)
    return [found[key] for key in keys]


Key = tuple[int, bytes, bytes]


def _refuse_damage(keys: Sequence[Key], found: Mapping[Key, Likelihood], places: Sequence[str]) -> None:
    """What is not a number would be chosen, or not, by accident."""
    wrong = [at for at, key in enumerate(keys) if not math.isfinite(found[key].nats)]
    if wrong:
        first = wrong[0]
        place = places[first] if places else f"document {first + 1}"
        raise EvaluationError(
            f"{place}: the model finds it {found[keys[first]].nats} nats unlikely, and {len(wrong) - 1:,} of "
            f"{len(keys):,} documents more. Its weights are damaged, or its number format overflows; --dtype float32 "
            "tells which."
        )


def _key(document: Tokens) -> Key:
    """Long ones first, so that what cannot fit is known at once."""
    ids, learned = np.asarray(document.ids, np.int64), np.asarray(document.loss_mask, np.bool_)
    return -len(ids), ids.tobytes(), learned.tobytes()


def _batches(documents: Sequence[Tokens], tokens: int) -> Iterator[list[Tokens]]:
    """As many as are no more than so many tokens with their padding; one at least."""
    begin = 0
    while begin < len(documents):
        count = max(1, tokens // max(1, input_length(documents[begin])))
        yield list(documents[begin : begin + count])
        begin += count
