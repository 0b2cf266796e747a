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
from itertools import islice
from typing import Any

from torch import nn

from rankwise.base.preprocessing import processing_in
from rankwise.base.sources import find
from rankwise.config.experiment import Planned
from rankwise.config.models import ModelConfig
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
from rankwise.planning.shape import ModelShape
from rankwise.planning.tasks import SEQUENCES
from rankwise.planning.time import Probe
from rankwise.rows.encoded.batches import Batch
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
    lengths, predicted = forecast.load.lengths, forecast.load.output_tokens or forecast.load.supervised
    share = predicted / max(1, forecast.load.tokens)
    steps = [
        backend.layout(
            objective.rows_like(lengths, share, model.module, tokens, turn, COUNTED + 1), training.max_batch_tokens
        )
        for tokens in (max(1, most // SMALLER), most)
        for turn in range(COUNTED + 1)
    ]
    compared = objective.rows_like(lengths, share, model.module, COMPARED_TOKENS, 0, 1)
    choose_products(work, training.matmul, compared)
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
        return SEQUENCE_TO_SEQUENCE if shape.auto_class == SEQUENCES else CAUSAL_LM
    targets = TargetFacts(classes=tuple(map(str, range(shape.outputs))) if shape.outputs > 1 else ())
    if shape.image is not None:
        return ImageClassification(targets, processing_in(find(base, callback).folder).sized(shape.image))
    return Tagging(targets.model_copy(update={"form": "tags"})) if shape.words else TextClassification(targets)


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
