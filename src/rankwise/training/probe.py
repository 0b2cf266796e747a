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
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from rankwise.base.loading import load
from rankwise.base.preprocessing import processing_in
from rankwise.base.sources import find
from rankwise.config.experiment import Planned
from rankwise.config.models import ModelConfig
from rankwise.forward.plan import plan
from rankwise.kernels.quantized.tensor import is_quantized
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.loss import Loss
from rankwise.objectives.objective import Facts, Objective
from rankwise.objectives.registry import language_model, objective_named
from rankwise.planning.plan import Plan
from rankwise.planning.shape import ModelShape
from rankwise.planning.tasks import SEQUENCES
from rankwise.planning.time import Probe
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.manifest import now
from rankwise.runs.records import Callback, StatusMessage, StepRecord, silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.system.processor import processor_name
from rankwise.training.backend import COMPARED_TOKENS, choose_backend, choose_products
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Workload

STEPS, RATE = 1000, 1e-9
"""The steps and the learning rate that the probe's run is set to: too many steps for AdaLoRA to decide any rank
in the few that are made, and too small a rate to change anything."""
LARGEST, SMALLER = 4096, 4
"""Tokens of the larger step at most, and by how much the other is smaller."""
MOST_UNPACKING = 0.8
"""The largest share of a step's seconds that is attributed to unpacking weights."""
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
    objective = objective_of_shape(forecast.shape, config.base, callback)
    model = load(config.base, callback, objective.kind)
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
    rows = partial(_rows, forecast, objective.loss, model.module)
    steps = [
        backend.layout(rows(tokens, turn, COUNTED + 1), training.max_batch_tokens)
        for tokens in (max(1, most // SMALLER), most)
        for turn in range(COUNTED + 1)
    ]
    choose_products(work, training.matmul, rows(COMPARED_TOKENS, 0, 1))
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


def objective_of_shape(shape: ModelShape, base: ModelConfig, callback: Callback) -> Objective:
    """The objective of a plan, which reads only a model's shape, so that its classes have no names."""
    if shape.outputs is None:
        return language_model(shape.auto_class == SEQUENCES)
    targets = TargetFacts(classes=tuple(map(str, range(shape.outputs))) if shape.outputs > 1 else ())
    if shape.image is not None:
        processing = processing_in(find(base, callback).folder).sized(shape.image)
        return objective_named("image-classification", Facts(targets, processing))
    if shape.words:
        return objective_named("token-classification", Facts(targets.model_copy(update={"form": "tags"})))
    return objective_named("sequence-classification", Facts(targets))


def _rows(forecast: Plan, loss: Loss, module: nn.Module, tokens: int, turn: int, turns: int) -> list[Tokens]:
    """Random rows of about so many tokens, as long as those of the plan, and others at each turn. Where rows are
    padded, all have the same length, so that none has padding: what the plan counts are padded rows."""
    load, lengths = forecast.load, list[int]()
    if forecast.shape.task.padding:
        ordered = sorted(load.lengths)
        length = ordered[(2 * turn + 1) * len(ordered) // (2 * turns)]
        lengths = [length] * max(1, round(tokens / length))
    else:
        planned = _mixed(load.lengths)
        first = turn * len(planned) // turns
        for length in cycle(planned[first:] + planned[:first]):
            lengths.append(min(length, max(1, tokens - sum(lengths))))
            if sum(lengths) >= tokens:
                break
    drawn = loss.random_rows(module, lengths, torch.Generator().manual_seed(turn))
    share = (load.output_tokens or load.supervised) / max(1, load.tokens)
    return [_end_learned(one, share) for one in drawn] if forecast.shape.outputs is None else drawn


def _mixed(lengths: Sequence[int]) -> list[int]:
    """Long and short ones in turns, so that the first few are like all."""
    ordered, step = sorted(lengths), 7
    return [ordered[at] for first in range(step) for at in range(first, len(ordered), step)]


def _end_learned(row: Tokens, share: float) -> Tokens:
    """A row whose loss falls on the last `share` of its tokens alone."""
    count = len(row.ids)
    first = min(count - 1, round(count * (1 - share)))
    return Tokens(row.ids, (False,) * first + (True,) * (count - first))


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
    """The mean number of micro-batches of a step, over all steps but the first."""
    return sum(len(batches) for batches in steps[1:]) / len(steps[1:])


def _without(times: tuple[float, float], seconds: float) -> tuple[float, float]:
    """Tokens and seconds of a step without what unpacking took, which is at most most of them."""
    return times[0], times[1] - min(seconds, MOST_UNPACKING * times[1])
