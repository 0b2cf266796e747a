"""How fast this machine trains this model: steps of two sizes, after one of each that does not count.

    seconds of a step = constant + per_token x tokens + unpacking x micro-batches

The sequences are random, as long as the rows are and with as large a share learned; nothing is kept of what was
learned. Those of each step have other lengths, as in training: a processor's library makes its products anew for every
number of tokens that it has not met. EVA's start, which only looks at rows, is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from rankwise.base.loaded import LoadedModel
from rankwise.base.preprocessing import processing_in
from rankwise.base.sources import find
from rankwise.config.experiment import Planned
from rankwise.forward.plan import plan
from rankwise.kernels.quantized.tensor import is_quantized
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.objectives.image_classification import ImageClassification
from rankwise.objectives.objective import Objective
from rankwise.objectives.sequence_to_sequence import SEQUENCE_TO_SEQUENCE
from rankwise.objectives.tagging import Tagging
from rankwise.objectives.text_classification import TextClassification
from rankwise.planning.plan import Plan
from rankwise.planning.time import Probe
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.manifest import now
from rankwise.runs.records import Callback, StatusMessage, StepRecord, silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.system.processor import processor_name
from rankwise.training.backend import choose_backend
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Workload

STEPS, RATE = 1000, 1e-9
"""Of the run that AdaLoRA takes it for, so that no rank is decided; and so small a rate that nothing changes."""
LARGEST, SMALLER = 4096, 4
"""Tokens of the larger step at most, and by how much the other is smaller."""
MOST_UNPACKING = 0.8
"""Of the seconds of a step, what unpacking is taken for at most."""
COUNTED = 2
"""Steps of each size that count."""


@dataclass(frozen=True)
class FixedSteps:
    """The batches of each step, as they are."""

    steps: Sequence[list[Batch]]

    def at(self, step: int) -> list[Batch]:
        return self.steps[step]

    def epoch(self, step: int) -> float:
        return 0.0


def probe(config: Planned, callback: Callback = silent) -> Probe:
    forecast = plan(config)
    objective = _objective(forecast, callback)
    model = objective.load(config.base, callback)
    settings = {"steps": STEPS, "epochs": None, "learning_rate": RATE, "schedule": "constant", "warmup": 0.0}
    training = config.training.model_copy(update=settings)
    trainable = method_of(config.adapter.without_rows()).attach(
        model, Setup(training, STEPS, heads=objective.heads(model))
    )
    work = Workload(
        model.module, trainable, objective, longest=forecast.amount.longest, largest=forecast.amount.tokens,
        activation_checkpointing=training.activation_checkpointing, callback=callback,
    )  # fmt: skip
    backend = choose_backend(work, training.backend, tokens=0)
    most = min(LARGEST, max(round(forecast.step.tokens), forecast.amount.longest))
    steps = [
        backend.layout(_rows(forecast, objective, model, tokens, turn), training.max_batch_tokens)
        for tokens in (max(1, most // SMALLER), most)
        for turn in range(COUNTED + 1)
    ]
    with closing(Trainer(trainable, FixedSteps(steps), training, backend).run()) as records:
        small, large = (_mean(list(islice(records, COUNTED + 1))) for _ in range(2))
    unpacking = _unpacking(model.module, forecast.forecast.unpacked)
    within = [_without(seconds, unpacking * _micro_batches(batches)) for seconds, batches in (
        (small, steps[: COUNTED + 1]), (large, steps[COUNTED + 1 :])
    )]  # fmt: skip
    device = model.precision.device
    name = processor_name() if device.type == "cpu" else str(device)
    measured = Probe.of(*within, machine=name, when=now(), unpacking=unpacking)
    callback(StatusMessage(
        f"probed with the {backend.name} backend: {small[0]:,.0f} tokens took {small[1]:.2f} s, and {large[0]:,.0f} "
        f"tokens took {large[1]:.2f} s"
    ))  # fmt: skip
    return measured


def _objective(forecast: Plan, callback: Callback) -> Objective:
    """A classifier's classes have no names here, since nothing is written."""
    outputs, side = forecast.shape.outputs, forecast.shape.image
    if outputs is None:
        return SEQUENCE_TO_SEQUENCE if forecast.shape.is_encoder_decoder else CAUSAL_LM
    targets = TargetFacts(classes=tuple(str(number) for number in range(outputs)) if outputs > 1 else ())
    if side is None:
        return (
            Tagging(targets.model_copy(update={"form": "tags"}))
            if forecast.shape.words
            else TextClassification(targets)
        )
    folder = find(forecast.config.base, callback).folder
    return ImageClassification(targets, processing_in(folder).sized(side))


def _mean(records: Sequence[StepRecord]) -> tuple[float, float]:
    """Tokens and seconds of a step, over all but the first."""
    tokens, seconds = ([getattr(record, name) for record in records[1:]] for name in ("tokens", "seconds"))
    return sum(tokens) / len(tokens), sum(seconds) / len(seconds)


def _unpacking(module: nn.Module, numbers: float) -> float:
    """Seconds in which so many numbers of the model's packed weights are unpacked."""
    given: Any = [parameter for parameter in module.parameters() if is_quantized(parameter)]
    if not given:
        return 0.0
    began = time.perf_counter()
    for weight in given:
        weight.format.unpack(weight.parts, weight.stored_shape, weight.dtype)
    return (time.perf_counter() - began) * numbers / sum(weight.numel() for weight in given)


def _micro_batches(steps: Sequence[list[Batch]]) -> float:
    """Of a step, over all but the first."""
    return sum(len(batches) for batches in steps[1:]) / len(steps[1:])


def _without(measured: tuple[float, float], seconds: float) -> tuple[float, float]:
    """Tokens and seconds of a step without what unpacking took, which is at most most of them."""
    return measured[0], measured[1] - min(seconds, MOST_UNPACKING * measured[1])


def _rows(forecast: Plan, objective: Objective, model: LoadedModel, tokens: int, turn: int) -> list[Tokens]:
    """About so many tokens. Rows of classifiers and of encoders with decoders have all the same length, so that none
    has padding: what the plan counts are padded rows."""
    of_sides = forecast.shape.is_encoder_decoder
    if objective.targets is None and not of_sides:
        return _documents(forecast, objective, model, tokens, turn)
    lengths = sorted(forecast.load.lengths)
    length = lengths[(2 * turn + 1) * len(lengths) // (2 * (COUNTED + 1))]
    drawn = [length] * max(1, round(tokens / length))
    found = objective.random_rows(model.module, drawn, torch.Generator().manual_seed(turn))
    return [_learned(one, forecast.load.written / forecast.load.tokens) for one in found] if of_sides else found


def _documents(forecast: Plan, objective: Objective, model: LoadedModel, tokens: int, turn: int) -> list[Tokens]:
    """Sequences of about this many tokens, as long as those of the rows, and others at each turn."""
    share, wanted = forecast.load.supervised / max(1, forecast.load.tokens), _mixed(forecast.load.lengths)
    first = turn * len(wanted) // (COUNTED + 1)
    lengths: list[int] = []
    for length in cycle(wanted[first:] + wanted[:first]):
        lengths.append(min(length, max(1, tokens - sum(lengths))))
        if sum(lengths) >= tokens:
            break
    found = objective.random_rows(model.module, lengths, torch.Generator().manual_seed(turn))
    return [_learned(one, share) for one in found]


def _mixed(lengths: Sequence[int]) -> list[int]:
    """Long and short ones in turns, so that the first few are like all."""
    ordered, step = sorted(lengths), 7
    return [ordered[at] for first in range(step) for at in range(first, len(ordered), step)]


def _learned(sequence: Tokens, share: float) -> Tokens:
    """Its last part."""
    count = len(sequence.ids)
    first = min(count - 1, round(count * (1 - share)))
    return Tokens(sequence.ids, (False,) * first + (True,) * (count - first))
