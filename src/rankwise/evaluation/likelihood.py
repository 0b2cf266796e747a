"""Likelihood of sequences under a model: the sum of -log p, in nats, over the loss tokens of each.

Sequences are sorted and batched by length. So the result for a sequence depends neither on the order nor on the number
of the others, apart from rounding in the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.errors import EvaluationError
from rankwise.forward.reference import SupervisedLogits
from rankwise.rows.encoded.batches import Batch, collate, input_length
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Callback, ProgressUpdate, silent

LOGITS = 100_000_000
"""Logits in memory at a time."""
AT_ONCE = 512


@dataclass(frozen=True)
class Likelihood:
    nats: float
    tokens: int
    greedy: bool | None = None
    """Whether each token is the most likely one, so that greedy decoding would write exactly this; None where it was
    not looked at."""

    @property
    def sums(self) -> list[float]:
        """Row for the metric `loss` (metrics.py): [nats, tokens]."""
        return [self.nats, float(self.tokens)]


@torch.inference_mode()
def likelihoods(
    module: nn.Module, sequences: Sequence[Tokens], callback: Callback = silent, what: str = "",
    sources: Sequence[str] = (), forward: Callable[[Batch], Tensor] | None = None, greedy: bool = False,
    collated: Callable[[Sequence[Tokens]], Batch] = collate,
) -> list[Likelihood]:  # fmt: skip
    """Compute the likelihood of each sequence, in order; equal sequences are computed once. `sources` name where they
    come from in error messages. `forward` computes the logits, by default from the sequences alone, of the batches that
    `collated` makes. `greedy` looks whether greedy decoding would write them, which takes another pass over all
    logits."""
    keys = [_key(sequence) for sequence in sequences]
    distinct = dict(zip(keys, sequences, strict=True))
    model: Any = module
    device, vocabulary = next(module.parameters()).device, model.get_input_embeddings().weight.shape[0]
    forward, results = forward or SupervisedLogits(module), {}
    total, done = sum(input_length(one) for one in distinct.values()), 0
    for batch in _batches([distinct[key] for key in sorted(distinct)], max(256, LOGITS // vocabulary)):
        there = collated(batch).to(device)
        targets, logits = there.targets[there.loss_mask], forward(there)
        pieces = [
            F.cross_entropy(part.float(), target, reduction="none")
            for part, target in zip(logits.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
        ]
        counts = [one.loss_count for one in batch]
        nats = torch.cat(pieces).double().cpu().split(counts)
        hits = (
            [bool(part.all()) for part in (logits.argmax(-1) == targets).split(counts)]
            if greedy
            else [None] * len(batch)
        )
        for sequence, own, hit in zip(batch, nats, hits, strict=True):
            results[_key(sequence)] = Likelihood(own.sum().item(), sequence.loss_count, hit)
        done += sum(input_length(sequence) for sequence in batch)
        callback(ProgressUpdate(what, done, total, "tokens"))
    _refuse_damage(keys, results, sources)
    return [results[key] for key in keys]


Key = tuple[int, bytes, bytes]


def _refuse_damage(keys: Sequence[Key], results: Mapping[Key, Likelihood], sources: Sequence[str]) -> None:
    """Refuse likelihoods that are not finite, since choices based on them would be accidental."""
    wrong = [at for at, key in enumerate(keys) if not math.isfinite(results[key].nats)]
    if wrong:
        first = wrong[0]
        source = sources[first] if sources else f"document {first + 1}"
        raise EvaluationError(
            f"{source}: its negative log-likelihood is {results[keys[first]].nats}, like that of {len(wrong) - 1:,} "
            f"more of {len(keys):,} sequences. The model's weights are damaged, or its dtype overflows; try --dtype "
            "float32 to find out which."
        )


def _key(sequence: Tokens) -> Key:
    """Sort long sequences first, so that running out of memory shows at once."""
    ids, learned = np.asarray(sequence.ids, np.int64), np.asarray(sequence.loss_mask, np.bool_)
    return -len(ids), ids.tobytes(), learned.tobytes()


def _batches(sequences: Sequence[Tokens], tokens: int) -> Iterator[list[Tokens]]:
    """Yield batches of at most so many tokens including padding, but of at least one sequence."""
    begin = 0
    while begin < len(sequences):
        count = max(1, tokens // max(1, input_length(sequences[begin])))
        yield list(sequences[begin : begin + count])
        begin += count
