"""How fast this machine trains this model: steps of two sizes, after one of each that does not count.

    seconds of a step = constant + per_token x tokens

The documents are random, as long as the rows are and with as large a share learned; nothing is kept of what was
learned. Those of each step have other lengths, as in training: a processor's library makes its products anew for every
number of tokens that it has not met. EVA's start, which only looks at rows, is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle

import torch

from rankwise.config.planning import Planned
from rankwise.data.batches import Batch
from rankwise.forward.plan import plan
from rankwise.forward.reference import random_documents
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.planning.plan import Plan
from rankwise.planning.time import Probe
from rankwise.runs.manifest import now, processor_name
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.text.tokenize import Tokens
from rankwise.training.backend import Forms
from rankwise.training.losses import Loss
from rankwise.training.state import TrainState, adamw
from rankwise.training.step import optimizer_step

STEPS, RATE = 1000, 1e-9
"""Of the run that AdaLoRA takes it for, so that no rank is decided; and so small a rate that nothing changes."""
LARGEST, SMALLER = 4096, 4
"""Tokens of the larger step at most, and by how much the other is smaller."""
COUNTED = 2
"""Steps of each size that count."""


def probe(asked: Planned, callback: Callback = silent) -> Probe:
    made = plan(asked)
    model = load(asked.base, callback)
    trainable = method_of(asked.adapter.without_rows()).attach(model, Setup(asked.training, STEPS))
    device = model.precision.device
    state = TrainState(
        trainable, adamw(trainable, asked.training), lambda step: RATE, STEPS, asked.training.clip, device
    )
    longest, spec = made.amount.longest, asked.training
    forms = Forms(model, trainable, longest, made.amount.tokens, 0, spec.activation_checkpointing, callback)
    form = "plain" if spec.plain else forms.chosen(0)
    most = min(LARGEST, max(round(made.step.tokens), longest))
    with forms.computing(form, packing=False) as (loss_of, arrange):
        trainable.train()
        small, large = (
            _mean(state, [
                arrange(_documents(made, model, tokens, turn), spec.max_batch_tokens) for turn in range(COUNTED + 1)
            ], loss_of)
            for tokens in (max(1, most // SMALLER), most)
        )  # fmt: skip
        trainable.train(False)
    name = processor_name() if device.type == "cpu" else str(device)
    found = Probe.of(small, large, machine=name, when=now())
    callback(StatusMessage(
        f"probed in the {form} form: {small[0]:,.0f} tokens took {small[1]:.2f} s and {large[0]:,.0f} {large[1]:.2f} s"
    ))  # fmt: skip
    return found


def _documents(made: Plan, model: LoadedModel, tokens: int, turn: int) -> list[Tokens]:
    """About so many tokens, in documents as the rows have them, others at each turn; of a single one its first."""
    share, wanted = made.load.supervised / max(1, made.load.tokens), _mixed(made.load.lengths)
    first = turn * len(wanted) // (COUNTED + 1)
    lengths: list[int] = []
    for length in cycle(wanted[first:] + wanted[:first]):
        lengths.append(min(length, max(1, tokens - sum(lengths))))
        if sum(lengths) >= tokens:
            break
    found = random_documents(model.vocabulary, lengths, torch.Generator().manual_seed(turn))
    return [_learned(one, share) for one in found]


def _mixed(lengths: Sequence[int]) -> list[int]:
    """Long and short ones in turns, so that the first few are like all."""
    ordered, step = sorted(lengths), 7
    return [ordered[at] for first in range(step) for at in range(first, len(ordered), step)]


def _learned(document: Tokens, share: float) -> Tokens:
    """Its last part."""
    count = len(document.ids)
    first = min(count - 1, round(count * (1 - share)))
    return Tokens(document.ids, (False,) * first + (True,) * (count - first))


def _mean(state: TrainState, steps: Sequence[Sequence[Batch]], loss_of: Loss) -> tuple[float, float]:
    """Tokens and seconds of a step, over all but the first."""
    seconds = [_seconds(state, batches, loss_of) for batches in steps][1:]
    tokens = [sum(batch.tokens for batch in batches) for batches in steps][1:]
    return sum(tokens) / len(tokens), sum(seconds) / len(seconds)


def _seconds(state: TrainState, batches: Sequence[Batch], loss_of: Loss) -> float:
    began = time.perf_counter()
    optimizer_step(state, batches, loss_of, 0.0)
    return time.perf_counter() - began
